"""What a training round costs, beside TRL's own `SFTTrainer` with its defaults on the same student, examples,
batch, learning rate and machine.

    python -m benchmarks.round --json out.json [--models shipped,50m] [--repeats 3] [--steps 60]

On a GPU: `--models 0.6b,4b,8b --batch 16`. Every cell is a process of its own (`benchmarks.round_cell`), so
that memory is its own and nothing is warm; contenders take turns. `shipped` is the demo's student on the
demo's examples. The other students are Llama shapes with random weights and a vocabulary of 8,000 words, on
examples whose lengths follow the solutions of MATH (quantiles only; nothing of it is here). Useful tokens are
those of the rows, padding is what fills them up to the longest of their micro-batch. The share of the
device's matrix products (`mfu`) is 4 x parameters x useful tokens, which is LoRA's forward pass and the part
of its backward pass that full training needs as well, over what a product of 2,048 x 2,048 reaches.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

CONTENDERS = ("skillloop", "trl")
FIGURES = (
    "tokens_per_s", "padding", "peak_mib", "training_s", "outside_s", "mfu", "loss",
)  # fmt: skip


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures here.")] = None,
    models: Annotated[str, typer.Option(help="shipped, 50m, 0.6b, 4b, 8b; with commas.")] = "shipped,50m",
    repeats: Annotated[int, typer.Option(min=1, help="Turns of each contender.")] = 3,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps of a round.")] = 60,
    batch: Annotated[int, typer.Option(min=1, help="Examples per step.")] = 32,
) -> None:
    """Measure rounds of both trainers and print medians."""
    report: dict[str, Any] = {"steps": steps, "batch": batch, "repeats": repeats}
    for model in models.split(","):
        cells: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
        for turn in range(repeats):
            for contender in CONTENDERS if turn % 2 == 0 else reversed(CONTENDERS):
                cells[contender].append(_cell(model, contender, steps, batch))
        medians = {name: _medians(rows) for name, rows in cells.items()}
        ratio = medians["skillloop"]["tokens_per_s"] / medians["trl"]["tokens_per_s"]
        report[model] = {**medians, "cells": cells}
        report[f"{model}_ratio_to_trl"] = round(ratio, 3)
        report["device"] = cells["trl"][0]["device"]
        _show(model, medians, ratio)
    if json_file is not None:
        json_file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _cell(model: str, contender: str, steps: int, batch: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "benchmarks.round_cell",
            model,
            contender,
            str(steps),
            str(batch),
            folder,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{model} with {contender} failed:\n{done.stderr[-3000:]}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _medians(rows: list[dict[str, Any]]) -> dict[str, float]:
    return {name: round(statistics.median(row[name] for row in rows), 4) for name in FIGURES}


def _show(model: str, medians: dict[str, dict[str, float]], ratio: float) -> None:
    table = Table(*("", *FIGURES), title=f"{model}: {ratio:.2f} of TRL's useful tokens per second")
    for name, figures in medians.items():
        table.add_row(name, *(f"{figures[key]:,.3f}" for key in FIGURES))
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
