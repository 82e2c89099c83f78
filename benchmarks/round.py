"""What a training round costs, beside TRL's own `SFTTrainer` with its defaults on the same student, examples,
batch, learning rate and machine.

    python -m benchmarks.round --json out.json [--models shipped,50m] [--repeats 3] [--steps 60]

On a GPU: `--models 0.6b,4b,8b --batch 16`, which adds packed rounds, and QLoRA for the 8 B. Every cell is a
process of its own (`benchmarks.round_cell`), so that memory is its own and nothing is warm; contenders take
turns, each turn with a seed of its own. `shipped` is the demo's student on the demo's examples. The other
students are Llama shapes with random weights and a vocabulary of 8,000 words, on examples whose lengths
follow the solutions of MATH (quantiles only; nothing of it is here).

TRL's default is bfloat16 under autocast, on a CPU too; `trl-fp32` is the same in the type that this project
trains in there. Useful tokens are those of the rows, padding is what fills them up to the longest of their
micro-batch. Seconds of processor time are what a shared machine leaves comparable. `outside_s` is what a warm
worker needs besides training: load, tokenise, save. The share of the device's matrix products (`mfu`) is
4 x parameters x useful tokens, which is LoRA's forward pass and the part of its backward pass that full
training needs as well, over what a product of 2,048 x 2,048 reaches. `loss` is that of the trained student on
32 examples.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

FIGURES = (
    "tokens_per_s", "tokens_per_cpu_s", "padding", "peak_mib", "training_s", "outside_s", "mfu", "loss",
)  # fmt: skip
Figures = dict[str, Any]
Cell = Callable[..., Figures]
"""Called with the words of `benchmarks.round_cell`'s command line."""


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures here.")] = None,
    models: Annotated[str, typer.Option(help="shipped, 50m, 0.6b, 4b, 8b; with commas.")] = "shipped,50m",
    repeats: Annotated[int, typer.Option(min=1, help="Turns of each contender.")] = 3,
    steps: Annotated[int, typer.Option(min=2, help="Optimizer steps of a round.")] = 60,
    batch: Annotated[int, typer.Option(min=1, help="Examples per step.")] = 32,
) -> None:
    """Measure rounds of all contenders and print medians."""
    report = measure(models.split(","), repeats, steps, batch, in_a_process)
    if json_file is not None:
        json_file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for model in models.split(","):
        show(model, report[model]["medians"])
    if report["failed"]:
        raise SystemExit("\n".join(report["failed"]))


def measure(models: Sequence[str], repeats: int, steps: int, batch: int, cell: Cell) -> Figures:
    """The report: for each model all cells, their medians and, under `<model>_ratio_to_<contender>`, how many
    times as many useful tokens a second skillloop's round has."""
    report: Figures = {"steps": steps, "batch": batch, "repeats": repeats, "failed": [], "load": [load()]}
    for model in models:
        with tempfile.TemporaryDirectory() as folder:
            prepared = cell("base", model, folder)
            report["device"], contenders = prepared["device"], prepared["contenders"]
            cells: dict[str, list[Figures]] = {name: [] for name in contenders}
            for turn in range(repeats):
                for name in contenders if turn % 2 == 0 else contenders[::-1]:
                    try:
                        cells[name].append(cell(name, model, folder, steps, batch, turn))
                    except RuntimeError as exc:  # the others' figures are worth having
                        report["failed"].append(f"{model} with {name}: {exc}")
        medians = {name: _medians(rows, prepared["ceiling"]) for name, rows in cells.items() if rows}
        report[model] = {"medians": medians, "cells": cells, "parameters": prepared["parameters"]}
        report |= _ratios(model, medians)
        report["load"].append(load())
    return report


def in_a_process(*words: object) -> Figures:
    """`benchmarks.round_cell` in a process of its own. Raises `RuntimeError` with the end of its output."""
    command = [sys.executable, "-m", "benchmarks.round_cell", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ended with {done.returncode}:\n{done.stderr[-3000:]}")
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def load() -> float:
    """How many processes want to run on this machine, over the last minute."""
    return round(os.getloadavg()[0], 1)


def _medians(rows: Sequence[Figures], ceiling: float) -> dict[str, float]:
    medians = {name: statistics.median(row[name] for row in rows) for name in FIGURES if name in rows[0]}
    medians["mfu"] = statistics.median(row["flops_per_s"] for row in rows) / ceiling
    medians["loss_spread"] = max(row["loss"] for row in rows) - min(row["loss"] for row in rows)
    return {name: round(value, 4) for name, value in medians.items()}


def _ratios(model: str, medians: dict[str, dict[str, float]]) -> dict[str, float]:
    ratios = {}
    ours = medians.get("skillloop", {})
    for name, theirs in medians.items():
        if name.startswith("trl") and ours:
            for figure, key in (("tokens_per_s", ""), ("tokens_per_cpu_s", "cpu_"), ("peak_mib", "memory_")):
                ratios[f"{model}_{key}ratio_to_{name.replace('-', '_')}"] = round(
                    ours[figure] / theirs[figure], 3
                )
    return ratios


def show(model: str, medians: dict[str, dict[str, float]]) -> None:
    """The medians as a table."""
    table = Table(*("", *FIGURES), title=model)
    for name, figures in medians.items():
        table.add_row(name, *(f"{figures[key]:,.3f}" for key in FIGURES))
    Console(width=150).print(table)


if __name__ == "__main__":
    typer.run(main)
