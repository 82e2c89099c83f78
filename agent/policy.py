"""The policy: a pure function from what is known to what to do next (wait, select, synthesize), with its
reasons.

Rules, in order:

1. one round at a time; nothing while the day's budget is spent; a pause after each round, longer after
   rejected and failed ones;
2. enough answers of this version, and for each skill enough answers that needed it; a skill that has half of
   them and looks missing is waited for, no longer than a pause, so that skills which went missing together
   are taught together;
3. a skill is missing when the lower 5 % bound of its miss rate exceeds a threshold and enough traffic needs
   it;
4. a ceiling: a synthesis round without gain for a skill puts it aside, for a while (a selection round never
   does: the pool may have been the limit), or, with `reinforce`, has it taught by GRPO, once;
5. most harmful skills first (miss rate x share), few per round;
6. select while the pool has enough distinct items or the round would not pass them too often, else
   synthesize; also synthesize when a selection round has left the skill missing;
7. a rejected round is never repeated as it was: fewer skills, then synthesis instead of selection, then fewer
   steps, and at the end the skill is put aside. Rejections count until a promotion, or until they are old;
8. a skill that the gate cannot measure, for lack of held-out items, is not taught: its round could never be
   promoted;
9. a failed round says nothing of its skills, so it may be repeated; a skill whose rounds have failed
   `max_failures` times in a row is put aside, with the last error: a person must mend the cause.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agent.decision import (
    Decision,
    Kind,
    PolicyInput,
    PolicySettings,
    PoolState,
    SkillTarget,
    Teaching,
)
from agent.past import alone, ceiling, cooldown, gained, may_reinforce, rejections, set_aside, taught
from agent.posterior import SkillEstimate

DEFAULT_POLICY = PolicySettings()


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A skill that looks missing: why it cannot be taught yet (empty: it can), and how it would be taught.

    `nearly`: all it lacks is evidence, and half of that is there.
    """

    estimate: SkillEstimate
    why_not: str
    strategy: Teaching
    why_strategy: str
    nearly: bool = False
    reinforced: bool = False


def decide(given: PolicyInput, settings: PolicySettings = DEFAULT_POLICY) -> Decision:
    """Decide what to do for one student. Same input, same decision: no clock, no chance.

    Returns
    -------
    Decision
        `wait`, with a reason for the whole and one for each skill that looks missing; or a round, with its
        targets, sizes and reasons.

    Examples
    --------
    >>> from agent.profile import Observation, fold
    >>> from agent.posterior import read
    >>> seen = [Observation("s", 1, 0, ("gcd",), ("gcd",))] * 80 + [Observation("s", 1, 0, ("add",))] * 720
    >>> profile = read(fold(seen), "s", 1, as_of_bucket=0)
    >>> decision = decide(PolicyInput(profile, 800, 800, pools={"gcd": PoolState(available=500)}))
    >>> decision.kind, decision.skills, decision.steps
    ('select', (SkillTarget(skill='gcd', weight=1.0, examples=300, strategy='select'),), 160)
    >>> for reason in decide(PolicyInput(profile, 100, 100)).reasons:
    ...     print(reason)
    wait: 100 of 600 answers of version 1 watched
    gcd: missing (lower bound 0.96 > 0.25, 80 of 80, share 10.0 %); waits for the above
    """
    blocks = _blocks(given, settings)
    suspects = [e for e in given.profile.skills if e.mean > settings.miss_threshold]
    cap = _skill_cap(given, settings)
    passes_of = max(1, min(cap, sum(e.low > settings.miss_threshold for e in suspects)))
    candidates = [_candidate(e, given, settings, passes_of) for e in suspects]
    ready = [c for c in candidates if not c.why_not]
    since = None
    if ready and not blocks and len(ready) < cap:
        waits, began = _waits(ready, candidates, given, settings)
        since = began if waits else None
        blocks += waits
    if blocks or not ready:
        return _wait(given, settings, blocks, candidates, since)
    kind, chosen, why = _choose(ready, cap, settings)
    steps, why_steps = _steps(chosen, given, settings)
    targets = _targets(chosen, given, settings)
    taught = {c.estimate.skill for c in chosen}
    return Decision(
        kind=kind,
        skills=targets,
        examples=sum(target.examples for target in targets),
        steps=steps,
        reinforced=chosen[0].reinforced,
        reasons=(
            why,
            *(f"{c.estimate.skill}: {_evidence(c.estimate, settings)}; {c.why_strategy}" for c in chosen),
            why_steps,
            *(_passed_over(c, settings) for c in candidates if c.estimate.skill not in taught),
        ),
    )


def _blocks(given: PolicyInput, settings: PolicySettings) -> list[str]:
    """Why no round may start at all."""
    active = [record.round_id for record in given.history if record.outcome == "active"]
    blocks = [f"round {round_id} is still active" for round_id in active]
    left = given.budget
    if left.rounds_left_today is not None and left.rounds_left_today <= 0:
        blocks.append("no rounds are left today")
    if left.usd_left_today is not None and left.usd_left_today <= 0:
        blocks.append("today's money is spent")
    if left.train_seconds_left_today is not None and left.train_seconds_left_today <= 0:
        blocks.append("today's training time is spent")
    if given.answers_watched < settings.min_answers:
        blocks.append(
            f"{given.answers_watched} of {settings.min_answers} "
            f"answers of version {given.profile.version} watched"
        )
    ended = [record for record in given.history if record.outcome != "active"]
    if ended:
        pause, since = cooldown(ended, settings), given.answers_total - ended[-1].decided_at_answers
        if since < pause:
            blocks.append(
                f"{since} of {pause} answers since round {ended[-1].round_id} ({ended[-1].outcome})"
            )
    return blocks


def _skill_cap(given: PolicyInput, settings: PolicySettings) -> int:
    sizes = [len(record.skills) for record in rejections(given, settings)]
    return min([settings.max_skills, *(max(1, size // 2) for size in sizes)])


def _candidate(
    estimate: SkillEstimate, given: PolicyInput, settings: PolicySettings, skills: int
) -> _Candidate:
    strategy, why = _strategy(estimate.skill, given, settings, skills)
    obstacles = []
    if estimate.raw.needed < settings.min_needed:
        obstacles.append(f"needed by {estimate.raw.needed} answers, fewer than {settings.min_needed}")
    if estimate.low <= settings.miss_threshold:
        obstacles.append(f"lower bound {estimate.low:.2f} not above {settings.miss_threshold:g}")
    if estimate.share < settings.min_share:
        obstacles.append(f"share {estimate.share:.1%} of traffic below {settings.min_share:.1%}")
    if given.held_out is not None and given.held_out.get(estimate.skill, 0) < settings.min_held_out:
        obstacles.append(
            f"{given.held_out.get(estimate.skill, 0)} held-out items, the gate needs {settings.min_held_out}"
            f" to promote it: {'wait for traffic, or ' if given.held_out_grows else ''}add questions to"
            " task.held_out"
        )
    aside = set_aside(estimate.skill, strategy, given, settings)
    reached = ceiling(estimate.skill, given, settings)
    reinforced = reached is not None and may_reinforce(reached, settings)
    if reached is not None and reinforced:
        why += f"; by GRPO, since {gained(reached, estimate.skill)}"
    half_seen = settings.min_needed / 2 <= estimate.raw.needed < settings.min_needed
    nearly = half_seen and len(obstacles) == 1 and not aside
    return _Candidate(estimate, ", ".join([*obstacles, *aside]), strategy, why, nearly, reinforced)


def _waits(
    ready: Sequence[_Candidate],
    candidates: Sequence[_Candidate],
    given: PolicyInput,
    settings: PolicySettings,
) -> tuple[list[str], int]:
    """For which skills the ready ones wait, and since when. A wait lasts a pause at most, by what the store
    remembers and by how long the present shares say that the first was ready; the next one begins after
    another pause, or after a round."""
    began = given.answers_total if given.waits_since is None else given.waits_since
    rounds = [r.decided_at_answers for r in given.history]
    if given.answers_total - began >= 2 * settings.cooldown_answers or began < max(rounds, default=0):
        began = given.answers_total
    ready_for = max((c.estimate.raw.needed - settings.min_needed) / c.estimate.share for c in ready)
    if max(given.answers_total - began, ready_for) >= settings.cooldown_answers:
        return [], began
    methods = {(c.strategy, c.reinforced) for c in ready}
    told = f"will soon have enough evidence to be taught with {_names(ready)}"
    return [
        f"{c.estimate.skill} {told}"
        for c in candidates
        if c.nearly and (settings.allow_mix or (c.strategy, c.reinforced) in methods)
    ], began


def _strategy(skill: str, given: PolicyInput, settings: PolicySettings, skills: int) -> tuple[Teaching, str]:
    """Select or synthesize for one of `skills` targets, with the reason."""
    pool = given.pools.get(skill, PoolState(available=0))
    lessons = taught(skill, given)
    selected = [record.round_id for record in lessons if record.strategy_of(skill) == "select"]
    if selected and lessons[-1].strategy_of(skill) == "select":
        return "synthesize", f"still missing after selection round {selected[-1]}"
    refused = [r.round_id for r in rejections(given, settings) if r.strategy_of(skill) == "synthesize"]
    if selected and refused:
        return (
            "synthesize",
            (
                f"selection was tried, and round {refused[-1]} (synthesis) was rejected: "
                "change its size, not back"
            ),
        )
    if selected and pool.unused < settings.min_pool:
        return "synthesize", f"only {pool.unused} pool items unused since selection round {selected[-1]}"
    if pool.available == 0:
        return "synthesize", "no pool items"
    shown = (
        _planned_steps(skills, settings) * settings.examples_per_step * (1.0 - settings.replay_share) / skills
    )
    passes = shown / pool.available
    facts = f"{pool.available} distinct pool items, about {passes:.1f} passes"
    if pool.available >= settings.min_pool:
        return "select", f"{facts}: at least {settings.min_pool} items"
    if passes <= settings.max_passes:
        return "select", f"{facts}: at most {settings.max_passes:g} passes"
    return (
        "synthesize",
        f"{facts}: fewer than {settings.min_pool} items, more than {settings.max_passes:g} passes",
    )


def _choose(
    ready: Sequence[_Candidate], cap: int, settings: PolicySettings
) -> tuple[Kind, list[_Candidate], str]:
    """The targets: all of one method, the one whose best `cap` skills spoil most answers. Without `allow_mix`
    selection and synthesis are methods of their own, as reinforcement always is."""
    if settings.allow_mix:
        groups = [[c for c in ready if c.reinforced == method][:cap] for method in (False, True)]
        chosen = max(groups, key=_total)
        kinds = {candidate.strategy for candidate in chosen}
        kind: Kind = "mix" if len(kinds) > 1 else chosen[0].strategy
        return (
            kind,
            chosen,
            f"{kind}: {_names(chosen)} of {len(ready)} missing skills, total priority {_total(chosen):.3f}",
        )
    methods: dict[tuple[Teaching, bool], list[_Candidate]] = {
        ("select", False): [],
        ("synthesize", False): [],
    }
    for candidate in ready:
        methods.setdefault((candidate.strategy, candidate.reinforced), []).append(candidate)
    totals = {method: _total(group[:cap]) for method, group in methods.items()}
    method = max(totals, key=lambda each: totals[each])  # of equals the first: selection
    others = ", ".join(
        f"to {strategy}{' by GRPO' if reinforced else ''}: {total:.3f}"
        for (strategy, reinforced), total in totals.items()
        if (strategy, reinforced) != method
    )
    chosen = methods[method][:cap]
    return method[0], chosen, f"{method[0]}: {_names(chosen)}, total priority {totals[method]:.3f} ({others})"


def _steps(chosen: Sequence[_Candidate], given: PolicyInput, settings: PolicySettings) -> tuple[int, str]:
    if chosen[0].reinforced:
        return settings.reinforced_steps, f"{settings.reinforced_steps} steps of GRPO"
    planned = _planned_steps(len(chosen), settings)
    if len(chosen) == 1:
        only = chosen[0]
        tried = [r.steps for r in alone(only.estimate.skill, only.strategy, given, settings)]
        if tried:
            least = min((steps for steps in tried if steps), default=planned)
            halved = max(least // 2, settings.min_steps)
            return halved, f"{halved} steps: half of the rejected round's {least}"
    return (
        planned,
        (
            f"{planned} steps: "
            f"{settings.base_steps} + {settings.steps_per_skill} per skill x {len(chosen)}, within bounds"
        ),
    )


def _planned_steps(skills: int, settings: PolicySettings) -> int:
    return min(
        max(settings.base_steps + settings.steps_per_skill * skills, settings.min_steps), settings.max_steps
    )


def _targets(
    chosen: Sequence[_Candidate], given: PolicyInput, settings: PolicySettings
) -> tuple[SkillTarget, ...]:
    """Weights by priority; examples in proportion, but half the usual number at least, and no more than the
    pool has."""
    total, per_skill = _total(chosen), settings.examples_per_skill
    targets = []
    for candidate in chosen:
        skill = candidate.estimate.skill
        weight = candidate.estimate.priority / total if total > 0 else 1.0 / len(chosen)
        examples = max(round(weight * per_skill * len(chosen)), -(-per_skill // 2))
        if candidate.strategy == "select":
            examples = min(examples, given.pools[skill].available)
        targets.append(
            SkillTarget(skill=skill, weight=weight, examples=examples, strategy=candidate.strategy)
        )
    return tuple(targets)


def _wait(
    given: PolicyInput,
    settings: PolicySettings,
    blocks: Sequence[str],
    candidates: Sequence[_Candidate],
    since: int | None,
) -> Decision:
    reasons = [f"wait: {block}" for block in blocks]
    if not blocks and not candidates:
        highest = max(given.profile.skills, key=lambda e: e.mean, default=None)
        detail = (
            f"highest miss rate {highest.mean:.2f} ({highest.skill})" if highest else "the profile is empty"
        )
        reasons.append(f"wait: no skill looks missing, {detail}")
    elif not blocks:
        reasons.append(f"wait: {len(candidates)} skills look missing, none can be taught yet")
    passed_over = (_passed_over(candidate, settings) for candidate in candidates)
    return Decision(kind="wait", reasons=(*reasons, *passed_over), waits_since=since)


def _passed_over(candidate: _Candidate, settings: PolicySettings) -> str:
    skill = candidate.estimate.skill
    if candidate.why_not:
        return f"{skill}: not yet: {candidate.why_not}"
    return f"{skill}: {_evidence(candidate.estimate, settings)}; waits for the above"


def _evidence(e: SkillEstimate, settings: PolicySettings) -> str:
    return (
        f"missing (lower bound {e.low:.2f} > {settings.miss_threshold:g}, "
        f"{e.raw.missing} of {e.raw.needed}, share {100 * e.share:.1f} %)"
    )


def _total(chosen: Sequence[_Candidate]) -> float:
    return sum(candidate.estimate.priority for candidate in chosen)


def _names(chosen: Sequence[_Candidate]) -> str:
    return ", ".join(candidate.estimate.skill for candidate in chosen)
