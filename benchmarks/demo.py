"""The demo on many seeds, each with a drift, pools and teacher errors of its own: gains with their spread,
and how often a round or a whole run went badly.

    python -m benchmarks.demo --seeds 20 --first-seed 100        # 6 to 20 minutes a seed

Each seed is `skillloop demo --seed N` in a process of its own; its figures are a line of `--figures`, and a
seed that has one is not run again. At the end it prints a table of all that have run.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.progress import track
from scipy import stats

FIGURES = Path(__file__).with_name("demo_seeds.jsonl")
ASIDE = ("ceiling:", "nothing is left to reduce")
Run = Mapping[str, Any]


def change(name: str) -> Callable[[Run], float]:
    """The change of an accuracy on the exam, in points."""
    return lambda run: 100 * float(run[f"{name}_accuracy_after"] - run[f"{name}_accuracy_before"])


MEASURES: Mapping[str, Callable[[Run], float]] = {
    "drifted mixtures, exam, points gained": change("shifted"),
    "truly missing skills, exam, points gained": change("missing"),
    "original mixture, exam, points gained": change("original"),
    "out of distribution, exam, points gained": change("ood"),
    "drifted traffic as served, last less first, points": lambda run: (
        100 * float(run["served_accuracy_last"] - run["served_accuracy_first"])
    ),
    "worst loss of a mastered skill, points": lambda run: 100 * float(run["worst_mastered_loss"]),
    "precision of the skills taught": lambda run: float(run["precision"]),
    "recall of the skills missing": lambda run: float(run["recall"]),
    "rounds": lambda run: len(run["rounds"]),
}

OUTCOMES: Mapping[str, Callable[[Run], bool]] = {
    "a round selected": lambda run: any(row["kind"] == "select" for row in run["rounds"]),
    "a round synthesized": lambda run: any(row["kind"] == "synthesize" for row in run["rounds"]),
    "a round rejected": lambda run: any(not row["promoted"] for row in run["rounds"]),
    "no round promoted": lambda run: not any(row["promoted"] for row in run["rounds"]),
    "a skill put aside": lambda run: any(
        word in reason for row in run["rounds"] for reason in row["reasons"] for word in ASIDE
    ),
    "precision below 1": lambda run: run["precision"] < 1,
    "recall below 1": lambda run: run["recall"] < 1,
    "drifted mixtures lower than before": lambda run: change("shifted")(run) < 0,
    "a mastered skill down by more than 3 points": lambda run: 100 * run["worst_mastered_loss"] > 3 + 1e-9,
}


def finished(figures: Path = FIGURES) -> list[Run]:
    """The figures of the seeds that have run."""
    return [json.loads(line) for line in figures.read_text().splitlines()] if figures.exists() else []


def table(runs: Sequence[Run]) -> str:
    """Means with 95 % intervals of the mean (Student's t) and ranges, and shares of seeds, as Markdown."""
    lines = [f"| {len(runs)} seeds | mean | lowest | highest |", "|---|---|---|---|"]
    for name, measure in MEASURES.items():
        values = np.array([measure(run) for run in runs])
        half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values) if len(values) > 1 else np.nan
        lines.append(
            f"| {name} | {values.mean():.2f} \u00b1 {half:.2f} | {values.min():.2f} | {values.max():.2f} |"
        )
    lines += ["", "| on how many seeds | |", "|---|---|"]
    lines += [
        f"| {name} | {sum(map(happened, runs))} of {len(runs)} |" for name, happened in OUTCOMES.items()
    ]
    return "\n".join(lines)


def main(
    seeds: Annotated[int, typer.Option(help="How many.")] = 20,
    first_seed: int = 100,
    figures: Annotated[Path, typer.Option(help="A line for each finished seed.")] = FIGURES,
    minutes: Annotated[float, typer.Option(help="No seed begins after so many minutes.")] = 24 * 60.0,
) -> None:
    """Run the seeds that have no figures yet, then print the table."""
    begun = time.monotonic()
    known = finished(figures)
    left = [
        seed for seed in range(first_seed, first_seed + seeds) if seed not in {run["seed"] for run in known}
    ]
    for seed in track(left, description="seeds"):
        if time.monotonic() - begun > 60 * minutes:
            print("the time is over; the same command continues")
            break
        with tempfile.TemporaryDirectory() as folder:
            told = Path(folder) / "figures.json"
            place = ["--dir", Path(folder) / "run", "--json", told]
            command: list[str | Path] = [
                Path(sys.executable).with_name("skillloop"),
                "demo",
                "--seed",
                str(seed),
                *place,
            ]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            known.append(json.loads(told.read_text()))
        with figures.open("a", encoding="utf-8") as file:
            file.write(json.dumps(known[-1]) + "\n")
    wanted = range(first_seed, first_seed + seeds)
    print(table([run for run in known if run["seed"] in wanted]))


if __name__ == "__main__":
    typer.run(main)
