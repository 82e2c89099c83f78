"""What earlier rounds say to the policy: how long to pause, what was refused, what is left to try."""

from __future__ import annotations

from collections.abc import Sequence

from agent.decision import PolicyInput, PolicySettings, RoundRecord, Teaching

_MAX_COOLDOWN_FACTOR = 8.0


def cooldown(ended: Sequence[RoundRecord], settings: PolicySettings) -> int:
    """Answers to wait for after the last round."""
    in_a_row = 0
    for record in reversed(ended):
        if record.outcome == "promoted":
            break
        in_a_row += 1
    factor = min(settings.rejected_cooldown_factor**in_a_row, _MAX_COOLDOWN_FACTOR)
    return int(settings.cooldown_answers * max(factor, 1.0))


def rejections(given: PolicyInput, settings: PolicySettings) -> list[RoundRecord]:
    """Rejected rounds that still count: since the last promotion, and not too old."""
    recent: list[RoundRecord] = []
    for record in given.history:
        if record.outcome == "promoted":
            recent = []
        elif record.outcome == "rejected" and age(record, given) < settings.ceiling_expires_answers:
            recent.append(record)
    return recent


def failures(skill: str, given: PolicyInput, settings: PolicySettings) -> list[RoundRecord]:
    """The latest rounds on a skill, as far as they failed in a row; none when the last of them is old."""
    in_a_row: list[RoundRecord] = []
    for record in given.history:
        if skill in record.skills and record.outcome != "active":
            in_a_row = [*in_a_row, record] if record.outcome == "failed" else []
    old = not in_a_row or age(in_a_row[-1], given) >= settings.ceiling_expires_answers
    return [] if old else in_a_row


def age(record: RoundRecord, given: PolicyInput) -> int:
    """Answers since the round."""
    return given.answers_total - record.decided_at_answers


def set_aside(skill: str, strategy: Teaching, given: PolicyInput, settings: PolicySettings) -> list[str]:
    """Why a skill is not taught for now: failures that a person must mend, the ceiling rule, and rejections
    that leave nothing to change."""
    reasons = []
    failed = failures(skill, given, settings)
    if len(failed) >= settings.max_failures:
        last, expires = failed[-1], settings.ceiling_expires_answers - age(failed[-1], given)
        reasons.append(
            f"{len(failed)} rounds on it failed, the last is {last.round_id} ({last.error or 'unknown'})"
            f"; a person must mend the cause; tried again in {expires} answers"
        )
    reached = ceiling(skill, given, settings)
    if reached is not None and not may_reinforce(reached, settings):
        expires = settings.ceiling_expires_answers - age(reached, given)
        reasons.append(f"ceiling: {gained(reached, skill)}, expires in {expires} answers")
    for record in alone(skill, strategy, given, settings):
        if 0 < record.steps < 2 * settings.min_steps:
            reasons.append(
                f"round {record.round_id} on it alone was rejected at {record.steps} steps: "
                "nothing is left to reduce"
            )
    return reasons


def ceiling(skill: str, given: PolicyInput, settings: PolicySettings) -> RoundRecord | None:
    """The last synthesis or reinforced round on a skill, when it gained nothing and is not old. A selection
    round says little: the pool may have been the limit."""
    tried = [
        record
        for record in taught(skill, given)
        if skill in record.gains and (record.reinforced or record.strategy_of(skill) == "synthesize")
    ]
    if not tried or tried[-1].gains[skill] >= settings.min_gain:
        return None
    return tried[-1] if age(tried[-1], given) < settings.ceiling_expires_answers else None


def may_reinforce(reached: RoundRecord, settings: PolicySettings) -> bool:
    """Whether a skill whose ceiling this round showed is to be taught by reinforcement: once."""
    return settings.reinforce and not reached.reinforced


def gained(record: RoundRecord, skill: str) -> str:
    """A round's gain on a skill, in words."""
    what = "reinforced" if record.reinforced else "synthesis"
    return f"{what} round {record.round_id} gained {record.gains[skill]:+.2f}"


def taught(skill: str, given: PolicyInput) -> list[RoundRecord]:
    """Rounds that really taught the skill: neither active nor crashed."""
    return [
        record
        for record in given.history
        if skill in record.skills and record.outcome in ("promoted", "rejected")
    ]


def alone(skill: str, strategy: Teaching, given: PolicyInput, settings: PolicySettings) -> list[RoundRecord]:
    """Supervised rounds on this skill alone that were rejected and still count."""
    return [
        r
        for r in rejections(given, settings)
        if r.skills == (skill,) and r.strategy_of(skill) == strategy and not r.reinforced
    ]
