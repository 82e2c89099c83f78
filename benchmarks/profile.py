"""How well and how fast the profile sees: drift as the loop looks for it beside river's detectors, what
unexplained answers do to the estimate, and the cost of updating and reading.

    python -m benchmarks.profile --json out.json

Drift: seeded streams of answers to one skill, 1,000 at accuracy 0.8 and then 1,000 at 0.6 or 0.7, folded into
buckets of ten and read by `scan_version`, as the monitor does. Every detector gets the same misses, one by
one, and knows nothing else: no baseline. A false alarm is one in the first 1,000; delays count answers after
the change in streams without one. Then a student of 20 skills that misses a steady 30 % of all. Abstention:
the miss rate that is read when nobody explains a part of the wrong answers. Cost: seconds per row (a row is
one skill of one student) at several sizes.
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
from agent.drift import DriftSettings
from agent.posterior import ProfileView, ReadSettings
from agent.profile import BucketKey, Counts, Observation, fold
from agent.scanner import scan_version

BASE, LENGTH, SKILLS_PER_STUDENT, BATCH = 0.8, 1_000, 10, 1_000
Detector = Callable[[Sequence[int]], list[int]]
"""From misses (1: missed) to the indices of the answers at which it alarmed."""


def ours(bucket: int, catalog: int) -> Detector:
    """The loop's scan, on buckets of `bucket` answers, for one of `catalog` skills."""

    def alarms(misses: Sequence[int]) -> list[int]:
        rows = {
            BucketKey("s", 1, "skill", i // bucket): Counts(
                len(misses[i : i + bucket]), sum(misses[i : i + bucket])
            )
            for i in range(0, len(misses), bucket)
        }
        raised = scan_version(ProfileView(rows), "s", 1, len(rows) + 2, catalog, DriftSettings())
        return [(alarm.bucket + 1) * bucket - 1 for alarm in raised]

    return alarms


def of_river(make: Callable[[], Any]) -> Detector:
    """A river detector, which resets itself after each alarm; only rises of the miss rate count, as ours."""

    def alarms(misses: Sequence[int]) -> list[int]:
        detector, raised, seen = make(), [], 0
        for i, miss in enumerate(misses):
            detector.update(miss)
            if detector.drift_detected:
                recent, before = misses[max(i - 99, seen) : i + 1], misses[seen : max(i - 99, seen + 1)]
                if sum(recent) * len(before) >= sum(before) * len(recent):
                    raised.append(i)
                seen = i + 1
        return raised

    return alarms


DETECTORS: dict[str, Callable[[], Detector]] = {
    "skillloop, buckets of 1": lambda: ours(1, 1),
    "skillloop, buckets of 10": lambda: ours(10, 1),
    "skillloop, buckets of 10, one of 13 skills": lambda: ours(10, 13),
    "skillloop, buckets of 10, one of 100 skills": lambda: ours(10, 100),
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
            figures = _score([detect(row) for row in misses])
            results.append({"detector": name, "after": after, "streams": streams, **figures})
    return results


def _score(alarms: list[list[int]]) -> dict[str, float | None]:
    clean = [raised for raised in alarms if not any(i < LENGTH for i in raised)]
    delays = [min(raised) - LENGTH + 1 for raised in clean if raised]
    late = [*delays, *[float("inf")] * (len(clean) - len(delays))]
    return {
        "false_alarms_per_1000": sum(i < LENGTH for raised in alarms for i in raised) / len(alarms),
        "streams_with_false_alarm": 1.0 - len(clean) / len(alarms),
        "median_delay": statistics.median(late) if len(delays) * 2 > len(clean) else None,
        "missed": 1.0 - len(delays) / max(len(clean), 1),
        "alarms_a_stream": sum(map(len, alarms)) / len(alarms),
    }


def steady(students: int, seed: int) -> dict[str, float]:
    """Alarms of students that miss a steady 30 % of each of 20 skills, 400 answers a skill."""
    raised = 0
    for number in range(students):
        rng = np.random.default_rng([seed, number])
        rows = {
            BucketKey("s", 1, f"skill{n}", bucket): Counts(10, int(rng.binomial(10, 0.3)))
            for n in range(20)
            for bucket in range(40)
        }
        raised += len(scan_version(ProfileView(rows), "s", 1, 99, 20, DriftSettings()))
    return {"students": students, "skills": 20, "alarms_a_student": raised / students}


def abstention(runs: int, seed: int) -> list[dict[str, Any]]:
    """The miss rate that is read, and how often the 90 % interval holds the true one, with questions of one
    to three skills and a part of the wrong answers unexplained."""
    rates, results = {"a": 0.4, "b": 0.2, "c": 0.1, "d": 0.05}, []
    for silent, answers in ((0.0, 1_000), (0.1, 1_000), (0.4, 1_000), (0.4, 200), (0.8, 300)):
        seen: dict[str, list[tuple[float, bool]]] = {skill: [] for skill in rates}
        for run in range(runs):
            table = fold(_half_explained(random.Random(f"{seed}/{run}"), rates, answers, silent))
            read = ProfileView(table).read(
                "s", 1, 0, ReadSettings(window_buckets=None, half_life_buckets=None)
            )
            for e in read.skills:
                seen[e.skill].append((e.mean, e.low <= rates[e.skill] <= e.high))
        for skill, rate in rates.items():
            means, inside = zip(*seen[skill], strict=True)
            figures = {"true": rate, "read": statistics.fmean(means), "inside": statistics.fmean(inside)}
            results.append({"silent": silent, "answers": answers, **figures})
    return results


def _half_explained(
    rng: random.Random, rates: dict[str, float], answers: int, silent: float
) -> list[Observation]:
    stream = []
    for _ in range(answers):
        needed = tuple(rng.sample(sorted(rates), rng.randint(1, 3)))
        missing = tuple(skill for skill in needed if rng.random() < rates[skill])
        told = missing if rng.random() >= silent else ()
        stream.append(Observation("s", 1, 0, needed, told, bool(missing), judged=True))
    return stream


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


def _show(figures: dict[str, Any]) -> None:
    console = Console(width=140)
    columns = ("accuracy", "false alarms / 1000", "median delay", "missed", "alarms a stream")
    table = Table("detector", *columns, title="Drift detection")
    for r in figures["detection"]:
        delay = "-" if r["median_delay"] is None else f"{r['median_delay']:.0f}"
        rates = (
            f"{r['false_alarms_per_1000']:.3f}",
            delay,
            f"{r['missed']:.1%}",
            f"{r['alarms_a_stream']:.2f}",
        )
        table.add_row(r["detector"], f"{BASE} -> {r['after']}", *rates)
    console.print(table)
    console.print(f"a steady 30 %: {figures['steady']['alarms_a_student']:.3f} alarms a student of 20 skills")
    table = Table("unexplained", "answers", "true", "read", "in the 90 % interval", title="Abstention")
    for r in figures["abstention"]:
        cells = (f"{r['true']:.2f}", f"{r['read']:.3f}", f"{r['inside']:.0%}")
        table.add_row(f"{r['silent']:.0%}", str(r["answers"]), *cells)
    console.print(table)
    console.print(_cost_table(figures["cost"]))


def _cost_table(cost: Sequence[dict[str, float]]) -> Table:
    columns = (
        f"fold {BATCH}, us/answer",
        "fold + index, us/answer",
        "read one, ms",
        "read all, us/row",
        "ratio",
    )
    table = Table("rows", *columns, title="Cost")
    first = cost[0]["read_all_s"] / cost[0]["rows"]
    for c in cost:
        row = c["read_all_s"] / c["rows"]
        micros = (c["fold_s"] / BATCH * 1e6, c["update_s"] / BATCH * 1e6)
        cells = (*micros, c["read_one_s"] * 1e3, row * 1e6, row / first)
        table.add_row(f"{c['rows']:,}", *(f"{cell:.2f}" for cell in cells))
    return table


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="write the figures here")] = None,
    streams: Annotated[int, typer.Option(help="streams per accuracy")] = 1_000,
    seed: Annotated[int, typer.Option(help="seed of all streams")] = 0,
) -> None:
    """Measure detection, estimates under abstention, and cost."""
    figures = {
        "seed": seed,
        "detection": detection(streams, seed),
        "steady": steady(max(streams // 5, 1), seed),
        "abstention": abstention(max(streams // 4, 1), seed),
        "cost": costs((10, 1_000, 100_000), seed),
    }
    _show(figures)
    if json_file is not None:
        json_file.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
