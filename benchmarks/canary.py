"""How often the canary's test is wrong, and how many answers it takes, on simulated traffic.

    python -m benchmarks.canary --json canary.json          # --cases 100 for a quick look

`agent.canary.Canary` itself is asked after every answer; with `--bucket 50` it gets counts of buckets, as
in the loop. Difficult answers of the champion: 20 %; failed 1 %, slow 10 %; each of two target skills is
needed by a fifth of the answers and missed by 30 %. "Worse" is by ten points in one outcome. "To the end":
a promotion does not end a case. The fixed-size test beside it is the one-sided two-proportion z-test at the
same error and 95 % power, looked at once, for that outcome alone.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from statistics import NormalDist, median

from rich.console import Console
from rich.table import Table

from agent.canary import DIFFICULT, FAILED, SLOW, Arm, Canary, CanarySettings, Regression, TrialAnswer
from agent.profile import Counts
from agent.trial import spread

TARGETS = ("gcd", "powers")
NEEDED = 0.2
RATES: Mapping[str, float] = {
    DIFFICULT: 0.20,
    FAILED: 0.01,
    SLOW: 0.10,
    **{f"miss of {target}": 0.30 for target in TARGETS},
}
WORSE_BY = 0.10


@dataclass(frozen=True)
class Trial:
    """A scenario: `worse` is the outcome in which the canary is worse (empty: none), `share` its part of the
    traffic. `taught`: it misses the targets half as often, as a round is to achieve."""

    worse: str
    share: float
    taught: bool = False


@dataclass(frozen=True)
class Result:
    """How one case ended: after how many answers, of the canary and of both."""

    outcome: str
    canary: int
    both: int


def answers(trial: Trial, dice: random.Random) -> Iterator[TrialAnswer]:
    """Endless traffic."""
    while True:
        arm: Arm = "canary" if dice.random() < trial.share else "champion"
        bad = {
            name: dice.random() < _rate(trial, arm, name, rate)
            for name, rate in RATES.items()
            if not name.startswith("miss") or dice.random() < NEEDED
        }
        yield TrialAnswer(arm, bad)


def _rate(trial: Trial, arm: Arm, name: str, rate: float) -> float:
    if arm == "champion":
        return rate
    taught = trial.taught and name.startswith("miss")
    return (rate / 2 if taught else rate) + WORSE_BY * (name == trial.worse)


def bucketed(answered: Iterator[TrialAnswer], size: int, first: int) -> Iterator[TrialAnswer]:
    """As the loop sees them: counts of a bucket of `size` answers, in an order drawn by hash."""
    for bucket in count(first):
        arms: dict[Arm, dict[str, Counts]] = {}
        for answer in islice(answered, size):
            outcomes = arms.setdefault(answer.arm, {})
            for name, bad in answer.bad.items():
                seen = outcomes.get(name, Counts(0, 0))
                outcomes[name] = Counts(seen.needed + 1, seen.missing + bad)
        yield from spread(bucket, arms)


def run(trial: Trial, number: int, settings: CanarySettings, to_the_end: bool, bucket: int = 0) -> Result:
    """One case. `to_the_end`: a promotion does not end it. `bucket`: answers come in counts of so many."""
    canary, dice = Canary(settings, TARGETS), random.Random(f"{trial}/{number}")
    ours, answered = 0, answers(trial, dice)
    if bucket:
        answered = bucketed(answered, bucket, 1_000_000 * number)
    for both, answer in enumerate(answered, 1):
        canary.note(answer)
        ours += answer.arm == "canary"
        outcome, reason = canary.decide()
        if outcome == "roll back":
            worse = reason.startswith("worse")
            return Result("rolled back" if worse else "ran out", ours, both)
        if outcome == "promote" and not (to_the_end and ours < settings.max_answers):
            return Result("promoted", ours, both)
    raise AssertionError("the traffic is endless")


def fixed_size(rate: float, settings: CanarySettings, share: float) -> int:
    """The canary's answers that a test of one look needs for 95 % power."""
    z = NormalDist().inv_cdf
    worse = rate + WORSE_BY
    variance = worse * (1 - worse) + rate * (1 - rate) * share / (1 - share)
    return round((z(1 - settings.rollback_error) + z(0.95)) ** 2 * variance / WORSE_BY**2)


def row(
    trial: Trial, cases: int, settings: CanarySettings, to_the_end: bool, bucket: int
) -> dict[str, float | str | None]:
    """The figures of a scenario."""
    results = [run(trial, number, settings, to_the_end, bucket) for number in range(cases)]
    ended = [result.canary for result in results if result.outcome != "ran out"]
    needed = NEEDED if trial.worse.startswith("miss") else 1.0
    return {
        "worse": trial.worse or ("nothing, targets taught" if trial.taught else "nothing"),
        "share": trial.share,
        "to_the_end": float(to_the_end),
        "cases": cases,
        **{
            name.replace(" ", "_"): sum(result.outcome == name for result in results) / cases
            for name in ("rolled back", "promoted", "ran out")
        },
        "median_canary_answers": median(ended) if ended else None,
        "median_answers": median(result.both for result in results),
        "fixed_size": round(fixed_size(RATES[trial.worse], settings, trial.share) / needed)
        if trial.worse
        else None,
    }


def regression(cases: int, settings: CanarySettings, answered: int = 5_000) -> dict[str, float]:
    """Alarms of a promoted version within so many answers: as good as its predecessor, worse by exactly the
    margin, and worse by twenty points, with the median delay of the last."""
    figures: dict[str, float] = {}
    for name, rise in (("equal", 0.0), ("worse by the margin", settings.margin), ("worse by 20 points", 0.2)):
        delays = []
        for number in range(cases):
            watch, dice = Regression(settings, RATES[DIFFICULT]), random.Random(f"{name}/{number}")
            bad = (dice.random() < RATES[DIFFICULT] + rise for _ in range(answered))
            delays.append(next((at for at, each in enumerate(bad, 1) if watch.note(each)), 0))
        caught = [delay for delay in delays if delay]
        figures[name] = len(caught) / cases
        figures[f"{name}, median answers"] = median(caught) if caught else 0
    return figures


def main() -> None:
    """All scenarios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--bucket", type=int, default=0, help="give it counts of so many answers")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    settings = CanarySettings()
    trials = [(Trial(name, 0.5), False) for name in (DIFFICULT, FAILED, SLOW, f"miss of {TARGETS[0]}")]
    trials += [(Trial(DIFFICULT, 0.1), False), (Trial("", 0.5, taught=True), False)]
    trials += [(Trial("", 0.5), False), (Trial("", 0.1), False), (Trial("", 0.5), True)]
    rows = []
    table = Table("worse in", "share", "looked at to the end", "rolled back", "promoted", "ran out")
    for name in ("canary's answers, median", "all answers, median", "one look needs (canary's)"):
        table.add_column(name)
    for trial, to_the_end in trials:
        figures = row(trial, options.cases, settings, to_the_end, options.bucket)
        rows.append(figures)
        print(json.dumps(figures), flush=True)
        cells = [figures["worse"], figures["share"], "yes" if to_the_end else "no"]
        cells += [figures[name] for name in ("rolled_back", "promoted", "ran_out")]
        cells += [figures[name] for name in ("median_canary_answers", "median_answers", "fixed_size")]
        table.add_row(*map(str, cells))
    Console().print(table)
    later = regression(max(1, options.cases // 5), settings)
    print(f"a later regression, alarms within 5,000 answers: {later}")
    if options.json:
        figures = {"settings": settings.model_dump(), "rows": rows, "regression": later}
        options.json.write_text(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
