"""How well and how fast the profile sees: drift detection beside river's detectors, and the cost of updating
and reading.

    python benchmarks/profile.py --json out.json

Detection: seeded Bernoulli streams of single answers, 1,000 at accuracy 0.8 and then 1,000 at 0.6 or 0.7;
every detector sees the same streams. A false alarm is one in the first 1,000; the delay counts answers after
the change in streams without one; a stream without an alarm in the second 1,000 is missed. Cost: seconds per
row (a row is one skill of one student) at several sizes.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from river import drift

from agent.beta import quantile
from agent.drift import CusumTest, DriftSettings, design, scan
from agent.posterior import ProfileView, ReadSettings
from agent.profile import Counts, Observation, fold

BASE, LENGTH, SKILLS_PER_STUDENT, BATCH = 0.8, 1_000, 10, 1_000
Detector = Callable[[Sequence[int]], list[int]]
"""From misses (1: missed) to the indices of the answers at which it alarmed (the first in each half is
enough)."""


def ours(bucket: int, skills: int) -> Detector:
    """Our CUSUM, with a known baseline, on buckets of `bucket` answers, for one of `skills` skills tested
    together."""
    test = design(Counts(), skills, DriftSettings(mastered=1.0 - BASE))
    return lambda misses: _first_alarm(misses, bucket, test)


def _first_alarm(misses: Sequence[int], bucket: int, test: CusumTest) -> list[int]:
    rows = {
        i // bucket: Counts(len(misses[i : i + bucket]), sum(misses[i : i + bucket]))
        for i in range(0, len(misses), bucket)
    }
    state = scan(rows, test, as_of_bucket=len(rows) + 2)
    return [] if state.alarm_bucket is None else [(state.alarm_bucket + 1) * bucket - 1]


def ours_learning(bucket: int, reference: int) -> Detector:
    """The same, but the baseline is estimated from the stream's first `reference` answers, which are not
    tested themselves."""

    def alarms(misses: Sequence[int]) -> list[int]:
        test = design(Counts(reference, sum(misses[:reference])), 1)
        return [i + reference for i in _first_alarm(misses[reference:], bucket, test)]

    return alarms


def of_river(make: Callable[[], Any]) -> Detector:
    """A river detector, which resets itself after each alarm."""

    def alarms(misses: Sequence[int]) -> list[int]:
        detector, found = make(), []
        for i, miss in enumerate(misses):
            detector.update(miss)
            if detector.drift_detected:
                found.append(i)
        return found

    return alarms


DETECTORS: dict[str, Callable[[], Detector]] = {
    "skillloop CUSUM, single answers": lambda: ours(1, 1),
    "skillloop CUSUM, buckets of 10": lambda: ours(10, 1),
    "skillloop CUSUM, buckets of 10, one of 13 skills": lambda: ours(10, 13),
    "skillloop CUSUM, buckets of 10, baseline from 300": lambda: ours_learning(10, 300),
    "river ADWIN, default": lambda: of_river(drift.ADWIN),
    "river ADWIN, clock=1 delta=.05": lambda: of_river(lambda: drift.ADWIN(clock=1, delta=0.05)),  # type: ignore[no-untyped-call]
    "river Page-Hinkley, default": lambda: of_river(drift.PageHinkley),
}


def detection(streams: int, seed: int) -> list[dict[str, Any]]:
    """One result per detector and accuracy after the change."""
    results = []
    for after in (0.6, 0.7):
        rng = np.random.default_rng(seed)
        rates = np.concatenate([np.full(LENGTH, 1 - BASE), np.full(LENGTH, 1 - after)])
        misses = (rng.random((streams, 2 * LENGTH)) < rates).astype(int).tolist()
        for name, make in DETECTORS.items():
            detect = make()
            results.append(
                {
                    "detector": name,
                    "after": after,
                    "streams": streams,
                    **_score([detect(row) for row in misses]),
                }
            )
    return results


def _score(alarms: list[list[int]]) -> dict[str, float | None]:
    clean = [found for found in alarms if not any(i < LENGTH for i in found)]
    delays = [min(found) - LENGTH + 1 for found in clean if found]
    return {
        "false_alarms": 1.0 - len(clean) / len(alarms),
        "median_delay": statistics.median([*delays, *[float("inf")] * (len(clean) - len(delays))])
        if len(delays) * 2 > len(clean)
        else None,
        "missed": 1.0 - len(delays) / max(len(clean), 1),
    }


def costs(sizes: Sequence[int], seed: int) -> list[dict[str, float]]:
    """Cost of an update by one batch, of reading one profile and of reading all, with `rows` skill x student
    rows."""
    results: list[dict[str, float]] = []
    for rows in sizes:
        students = rows // SKILLS_PER_STUDENT
        rng = random.Random(seed)
        view = ProfileView(
            fold(
                _observation(rng, f"s{i % students}", i // students)
                for i in range(students * SKILLS_PER_STUDENT * 6)
            )
        )
        batch = [
            _observation(rng, f"s{rng.randrange(students)}", rng.randrange(SKILLS_PER_STUDENT))
            for _ in range(BATCH)
        ]
        settings = ReadSettings(half_life_buckets=17.3)
        folding = _seconds(partial(fold, batch))
        update = _seconds(partial(_update, view, batch))
        one = _seconds(partial(_read, view, ["s0"], settings))
        everything = _seconds(partial(_read, view, [f"s{i}" for i in range(students)], settings))
        results.append(
            {"rows": rows, "fold_s": folding, "update_s": update, "read_one_s": one, "read_all_s": everything}
        )
    return results


def _observation(rng: random.Random, student: str, skill: int) -> Observation:
    name = f"skill{skill % SKILLS_PER_STUDENT}"
    return Observation(student, 1, rng.randrange(48), (name,), (name,) if rng.random() < 0.3 else ())


def _update(view: ProfileView, batch: Sequence[Observation]) -> None:
    view.add(fold(batch))


def _read(view: ProfileView, students: Sequence[str], settings: ReadSettings) -> None:
    quantile.cache_clear()
    for student in students:
        view.read(student, 1, 48, settings)


def _seconds(work: Callable[[], object]) -> float:
    """Best of several runs, of at most about a second together."""
    times: list[float] = []
    while sum(times) < 1.0 and len(times) < 50:
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def _show(found: Sequence[dict[str, Any]], cost: Sequence[dict[str, float]]) -> None:
    console = Console(width=140)
    table = Table(
        "detector", "accuracy", "P(false alarm in 1000)", "median delay", "missed", title="Drift detection"
    )
    for r in found:
        delay = "-" if r["median_delay"] is None else f"{r['median_delay']:.0f}"
        table.add_row(
            r["detector"], f"{BASE} -> {r['after']}", f"{r['false_alarms']:.3f}", delay, f"{r['missed']:.1%}"
        )
    console.print(table)
    table = Table(
        "rows",
        f"fold {BATCH}, us/answer",
        "fold + index, us/answer",
        "read one, ms",
        "read all, us/row",
        "ratio",
        title="Cost",
    )
    first = cost[0]["read_all_s"] / cost[0]["rows"]
    for c in cost:
        row = c["read_all_s"] / c["rows"]
        cells = (
            c["fold_s"] / BATCH * 1e6,
            c["update_s"] / BATCH * 1e6,
            c["read_one_s"] * 1e3,
            row * 1e6,
            row / first,
        )
        table.add_row(f"{c['rows']:,}", *(f"{cell:.2f}" for cell in cells))
    console.print(table)


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="write the figures here")] = None,
    streams: Annotated[int, typer.Option(help="streams per accuracy")] = 1_000,
    seed: Annotated[int, typer.Option(help="seed of all streams")] = 0,
) -> None:
    """Measure detection and cost."""
    found, cost = detection(streams, seed), costs((10, 1_000, 100_000), seed)
    _show(found, cost)
    if json_file is not None:
        json_file.write_text(
            json.dumps({"seed": seed, "detection": found, "cost": cost}, indent=2) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    typer.run(main)
