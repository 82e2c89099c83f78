"""What must hold after a run of `benchmarks.hundred`, each as a check with its figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scipy.stats import binom

from agent.decision import Decision
from benchmarks.hundred_evidence import Books, Evidence
from benchmarks.hundred_world import CURSED, DRIFTING, HARMED, UNMEASURED
from loop.config import Config
from streams.state import ledger
from training.search import CHAMPION

ENOUGH = 100
"""Answers that a skill needs before its interval is held against the truth."""
COVERED = (0.85, 0.95)
"""The share of intervals that may hold the truth."""
CHANCE = 0.001
"""A share outside of `COVERED` is an error when chance alone would leave it so far out less often than this:
a short run has some 50 intervals. `tests/agent/test_imputation.py` holds many runs of such a teacher against
narrower bounds."""
OTHER_ALARMS = 2
PROMOTED = 3
"""Rounds that are promoted at least."""


@dataclass(frozen=True)
class Check:
    """Whether something holds, and the figures that say so."""

    name: str
    passed: bool
    shown: str
    figures: Mapping[str, Any]

    def row(self) -> dict[str, Any]:
        """The check for the JSON file."""
        return {"check": self.name, "passed": self.passed, **self.figures}


def check(name: str, passed: bool, **figures: Any) -> Check:
    """A check, shown by its figures."""
    shown = ", ".join(f"{key} {value}" for key, value in figures.items())
    return Check(name, bool(passed), shown, figures)


def check_all(seen: Evidence) -> list[Check]:
    """Every check."""
    grown = (unmeasured_is_taught,) if held_out_grows(seen.config) else ()
    return [make(seen) for make in (*CHECKS, *grown)]


def held_out_grows(config: Config) -> bool:
    """Whether traffic adds to the held-out set."""
    section = getattr(config, "heldout", None)
    return section is not None and section.share > 0


def promoted_on_missing_skills(seen: Evidence) -> Check:
    """At least three rounds are promoted, all of them on skills that are truly missing."""
    threshold = seen.config.policy.miss_threshold
    promoted = seen.ended("promoted")
    rates = [
        round(seen.truth(round_.record.opened.champion, skill), 2)
        for round_ in promoted
        for skill in round_.record.skills
    ]
    passed = len(promoted) >= PROMOTED and all(rate > threshold for rate in rates)
    return check("rounds promoted on missing skills", passed, promoted=len(promoted), true_miss_rates=rates)


def is_harmful(decision: Decision) -> bool:
    """Whether a round's challenger will lose what it must not."""
    return any(target.skill == CURSED and target.strategy == "select" for target in decision.skills)


def harm_is_rejected(seen: Evidence) -> Check:
    """The challenger that harms another skill is rejected, and no round fails."""
    harmful = [round_ for round_ in seen.rounds if is_harmful(round_.record.decision)]
    rejected, failed = seen.ended("rejected"), seen.ended("failed")
    passed = bool(harmful) and all(round_.state == "rejected" for round_ in harmful) and not failed
    named = sum(
        HARMED in reason
        for round_ in harmful
        if round_.record.judged
        for reason in round_.record.judged.verdict.reasons
    )
    return check(
        "the harmful challenger rejected",
        passed,
        harmful=len(harmful),
        reasons_that_name_the_harm=named,
        rejected=len(rejected),
        failed=len(failed),
    )


def none_repeated(seen: Evidence) -> Check:
    """No round that was not promoted is repeated as it was."""
    forms = [
        (round_.state, (d.kind, frozenset(round_.record.skills), d.examples, d.steps))
        for round_ in seen.rounds
        for d in (round_.record.decision,)
    ]
    repeats = sum(
        (form in [earlier for state, earlier in forms[:place] if state != "promoted"])
        for place, (_, form) in enumerate(forms)
    )
    return check("no rejected round repeated as it was", repeats == 0, rounds=len(forms), repeats=repeats)


def one_run_and_version(seen: Books) -> Check:
    """One MLflow run and at most one version per round, and no run of any other."""
    judged = {round_.round_id for round_ in seen.rounds if round_.record.judged}
    ids = {round_.round_id for round_ in seen.rounds} | {"base"}
    runs = [seen.runs.get(round_id, 0) for round_id in judged]
    passed = (
        set(runs) <= {1}
        and max(seen.versions.values()) == 1
        and seen.runs.keys() <= ids
        and seen.versions.keys() <= ids
    )
    return check(
        "one MLflow run, at most one version per round",
        passed,
        judged=len(judged),
        runs=sum(runs),
        versions=len(seen.versions) - 1,
    )


def champion_is_served(seen: Evidence) -> Check:
    """Registry and route name the version of the last promoted round."""
    last = max(seen.students)
    route = seen.traffic.rounds.route(seen.config.student.name)
    passed = route is not None and seen.champion == route[0] == last
    return check("the champion is what is served", passed, champion=seen.champion, route=route, last=last)


def no_skill_down(seen: Evidence) -> Check:
    """No champion misses a skill more often than an earlier one did, by more than the gate's margin."""
    worst, where = 0.0, ""
    best = dict(seen.students[1].rates)
    for version, student in seen.students.items():
        for name, rate in student.rates.items():
            if rate - best[name] > worst:
                worst, where = rate - best[name], f"{name} of version {version}"
            best[name] = min(best[name], rate)
    margin = seen.config.gate.margin
    return check(
        "no skill down by more than the gate promises", worst <= margin, worst=round(worst, 3), where=where
    )


def money_within_caps(seen: Books) -> Check:
    """What the ledger says was spent is within the caps of the day and of each round."""
    entries = ledger.entries(seen.store, seen.config.student.name)
    by_round: Counter[str] = Counter()
    by_day: Counter[str] = Counter()
    for entry in entries:
        by_day[entry.day] += entry.usage.usd  # type: ignore[assignment]
        by_round[entry.round_id or ""] += entry.usage.usd  # type: ignore[assignment]
    rounds = [usd for round_id, usd in by_round.items() if round_id]
    caps = seen.config.budget
    assert caps.usd_per_day is not None and caps.usd_per_round is not None
    day, dearest = max(by_day.values(), default=0.0), max(rounds, default=0.0)
    passed = day <= caps.usd_per_day and dearest <= caps.usd_per_round
    return check(
        "money within the caps",
        passed,
        day=round(day, 2),
        day_cap=caps.usd_per_day,
        dearest_round=round(dearest, 2),
        round_cap=caps.usd_per_round,
        calls=sum(entry.usage.calls for entry in entries),
    )


def intervals_cover(seen: Evidence) -> Check:
    """The 90 % intervals hold the true miss rate as often as they say, where there is enough evidence."""
    inside = enough = 0
    outside: list[str] = []
    for profile in seen.profiles():
        for estimate in profile.skills:
            if estimate.raw.needed < ENOUGH:
                continue
            enough += 1
            rate = seen.truth(profile.version, estimate.skill)
            if estimate.low <= rate <= estimate.high:
                inside += 1
            else:
                outside.append(
                    f"{estimate.skill} of v{profile.version}: {rate:.3f} not in"
                    f" {estimate.low:.3f}-{estimate.high:.3f} ({estimate.raw.needed})"
                )
    by_chance = (
        float(binom.cdf(inside, enough, COVERED[0])),
        float(binom.sf(inside - 1, enough, COVERED[1])),
    )
    made = check(
        "true miss rate inside the 90 % interval",
        enough > 0 and min(by_chance) >= CHANCE,
        share=round(inside / max(enough, 1), 3),
        skills=enough,
        by_chance=round(min(by_chance), 4),
    )
    return Check(made.name, made.passed, made.shown, {**made.figures, "outside": outside})


def drift_is_seen(seen: Evidence) -> Check:
    """Alarms on the skills that drifted, on at most two others, each once."""
    alarms = [alert for alert in seen.alerts if alert.kind == "miss rate"]
    skills = {alert.skill for alert in alarms}
    others = sorted(skills - set(DRIFTING))
    again = [
        key
        for key, count in Counter((a.student_version, a.kind, a.skill) for a in alarms).items()
        if count > 1
    ]
    passed = skills >= set(DRIFTING) and len(others) <= OTHER_ALARMS and not again
    kinds = Counter(alert.kind for alert in seen.alerts)
    return check(
        "drift alarms on the skills that drifted",
        passed,
        drifted=sorted(skills & set(DRIFTING)),
        others=others,
        repeated=again,
        alarms_by_kind=dict(kinds),
    )


def nothing_lost(seen: Evidence) -> Check:
    """Every answer is counted once, the profile can be rebuilt, nothing was refused or left unsent."""
    sent = seen.traffic.sent
    counted = seen.store.answers(seen.config.student.name)
    pending = len(seen.store.pending(1000))
    passed = sent == counted == seen.diagnoses and not seen.letters and not pending
    return check(
        "nothing lost, nothing counted twice",
        passed,
        sent=sent,
        counted=counted,
        diagnoses=seen.diagnoses,
        dead_letters=seen.letters,
        outbox=pending,
        rebuild=seen.rebuilt,
    )


def unmeasured_is_taught(seen: Evidence) -> Check:
    """The missing skill that had no held-out questions got them from the traffic and was taught."""
    taught = [round_ for round_ in seen.ended("promoted") if UNMEASURED in round_.record.skills]
    items = [
        row.items
        for round_ in taught
        for row in round_.record.need_judged().verdict.table
        if row.name == UNMEASURED and row.against == CHAMPION
    ]
    passed = bool(items) and min(items) >= seen.config.gate.min_items
    return check(
        "a skill without held-out questions gets them and is taught",
        passed,
        skill=UNMEASURED,
        rounds=[round_.round_id for round_ in taught],
        held_out_items=items,
    )


def faults_happened(seen: Evidence) -> Check:
    """Workers were killed and frozen as planned; the frozen train worker knows that it lost its round, and
    no other worker ended."""
    faults, crew = seen.faults, seen.crew
    lost = sum(
        f"round {round_id} is no longer" in line
        for round_id, name in faults.frozen.items()
        for line in crew.log_file(name).read_text().splitlines()
    )
    passed = faults.done and lost == 1 and crew.restarts == dict(Counter(faults.killed.values()))
    return check(
        "killed and frozen on the way",
        passed,
        killed=faults.killed,
        frozen=faults.frozen,
        continued=faults.continued,
        losses_noticed=lost,
        restarts=crew.restarts,
    )


CHECKS = (
    promoted_on_missing_skills,
    harm_is_rejected,
    none_repeated,
    one_run_and_version,
    champion_is_served,
    no_skill_down,
    money_within_caps,
    intervals_cover,
    drift_is_seen,
    nothing_lost,
    faults_happened,
)
