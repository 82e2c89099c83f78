"""Does skill-targeted training learn better than what one would do otherwise, at the same cost?

    python -m benchmarks.learning --study main [--seeds 0,1,2,3,4] [--methods stat-syn,vanilla] [--minutes 60]
    python -m benchmarks.learning --quick

Each cell (student, drift, method, seed) is one LoRA round of the product's trainer on the shipped student and
one exam; finished cells are in `benchmarks/learning_cells.jsonl` and are never run again, so a run can be
killed and repeated. The learning rate of a method is the best of three on the validation split (study `lr`,
one seed that no test uses). docs/learning.md holds the tables, which `python -m benchmarks.learning_table`
makes of the cells.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from safetensors.torch import load_file, save_file

from benchmarks.learning_cells import CELLS, LRS, SHIPPED, Cell, CellFile, Result
from benchmarks.learning_data import BATCH, REPLAYS, SIZES, Watch, new_examples, presentations, replayed
from benchmarks.learning_scores import SCENARIOS, Answerer, Marked, chosen_lr, exam, marks, scores
from loop.tasks.student import student_dir
from serving.adapter_files import WEIGHTS_FILE
from training.settings import SftSettings
from training.sft import SftTrainer
from training.trainer import TrainingJob

WORK = Path("runs/learning")
LR_SEED = 900
OURS = "stat-syn"
SEARCHED = (OURS, "vanilla", "watched")
QUICK, QUICK_SEEDS = (OURS, "watched", "vanilla"), (0, 1, 2)
METHODS = (
    "vanilla", "watched", "stat-syn", "failed", "traffic", "stat-sel", "random", "question-skill", "shuffled",
    "mix", "embed-sel", "embed-syn", "augment", "hard",
)  # fmt: skip
CHAINED = ("half-known-chains", "half-pool-chains", "half-right-traffic")
BLENDS = (0.65, 0.8)


@dataclass
class Bench:
    """Runs cells. `work` keeps what can be made again: answers watched, adapters."""

    file: CellFile
    work: Path
    arch: str

    @cached_property
    def answerer(self) -> Answerer:
        """The student's engine."""
        return Answerer(student_dir(self.arch))

    def run(self, cell: Cell) -> Result:
        """The result of a cell, from the file or now."""
        if cell not in self.file:
            self.file.add(cell, self._shipped(cell) if cell.method == SHIPPED else self._run(cell))
        return self.file[cell]

    def _shipped(self, cell: Cell) -> Result:
        items = exam(cell.split, cell.scenario, cell.items)
        right = marks(items, self.answerer.answers([item.question for item in items]))
        return Result(strata=Marked(items, right, right).strata(), right=right)

    def _run(self, cell: Cell) -> Result:
        before, began = self.run(cell.base()).right, time.monotonic()
        adapter, told = self.adapter(cell)
        items = exam(cell.split, cell.scenario, cell.items)
        right = marks(items, self.answerer.answers([item.question for item in items], adapter))
        marked = Marked(items, right, before)
        return told.model_copy(
            update={
                "strata": marked.strata(),
                "gained": marked.count("0", "1"),
                "lost": marked.count("1", "0"),
                "seconds": round(time.monotonic() - began, 1),
            }
        )

    def adapter(self, cell: Cell) -> tuple[Path, Result]:
        """The adapter of a cell, and a result that says how it was made."""
        watch = Watch(cell, self.answerer, self.work)
        made, old = new_examples(watch, cell), replayed(watch, cell)
        folder = (
            self.work
            / "adapters"
            / "-".join(str(part) for part in (*cell.trained().family(), cell.seed, cell.lr))
        )
        job = TrainingJob(
            student_dir(cell.arch), None, presentations(made.examples, old, cell), folder, cell.steps, BATCH,
            256, cell.seed,
        )  # fmt: skip
        trained = SftTrainer(SftSettings(lr=cell.lr, save_every=0)).train(job)
        usage = watch.watching + made.usage
        told = Result(
            strata={},
            tokens=trained.tokens,
            new=len(made.examples),
            replayed=sum(map(len, old)),
            calls=usage.calls,
            teacher_tokens=usage.prompt_tokens + usage.completion_tokens,
            watched=len(watch.decided[0]),
            targets=watch.targets,
        )
        return blended(trained.adapter_dir, cell.blend), told


def blended(adapter: Path, share: float) -> Path:
    """The adapter with `share` of its change of the weights: merged with a champion that has none."""
    if share == 1:
        return adapter
    folder = adapter.with_name(f"blend-{share}")
    shutil.copytree(adapter, folder, dirs_exist_ok=True)
    weights = load_file(folder / WEIGHTS_FILE)
    save_file(
        {name: w * share if "lora_B" in name else w for name, w in weights.items()}, folder / WEIGHTS_FILE
    )
    return folder


def lr_cells(plain: Cell, methods: Iterable[str]) -> list[Cell]:
    """The search of the learning rates, on validation items."""
    return [
        replace(plain, seed=LR_SEED, method=method, lr=lr, split="gate")
        for lr in (LRS[1], LRS[2], LRS[0])
        for method in methods
        if method in SEARCHED
    ]


def main_cells(file: CellFile, plain: Cell, methods: Sequence[str], seeds: Sequence[int]) -> list[Cell]:
    """The comparison, seed by seed."""
    return [
        replace(plain, seed=seed, method=method, lr=chosen_lr(file, method, plain.arch))
        for seed in seeds
        for method in methods
    ]


def composition_cells(file: CellFile, plain: Cell, seeds: Sequence[int]) -> list[Cell]:
    """What keeps chains: the round of STAT-Syn with other replay, a lower rate, or less of its change."""
    changes: list[dict[str, Any]] = [
        {}, *({"replay": name} for name in CHAINED), *({"blend": share} for share in BLENDS),
    ]  # fmt: skip
    return [replace(cell, **change) for cell in main_cells(file, plain, (OURS,), seeds) for change in changes]


def run_cells(bench: Bench, cells: Sequence[Cell], deadline: float) -> None:
    """Run what is not finished, until the deadline (monotonic seconds)."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console()
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("cells", total=len(cells))
        for cell in cells:
            progress.update(bar, description=f"{cell.method}, {cell.scenario}, seed {cell.seed}")
            if cell not in bench.file:
                if time.monotonic() > deadline:
                    console.print("the time is over; the same command continues")
                    return
                points = scores(bench.run(cell), cell.scenario)
                console.print(
                    f"{cell}: {bench.file[cell].seconds} s "
                    + str({k: round(v, 1) for k, v in points.items()}),
                    highlight=False,
                    soft_wrap=True,
                )
            progress.advance(bar)


def study_cells(
    study: str, file: CellFile, plain: Cell, methods: Sequence[str], seeds: Sequence[int]
) -> list[Cell]:
    """The cells of a study, in the order in which they run. `plain` has what is common to them. Raises
    `typer.BadParameter` for an unknown study or method."""
    unknown = sorted({*methods} - {*METHODS})
    if unknown:
        raise typer.BadParameter(f"unknown methods {unknown}; there are {', '.join(METHODS)}")
    if study == "lr":
        return lr_cells(plain, methods)
    if study == "main":
        return main_cells(file, plain, methods, seeds)
    if study == "compositions":
        return composition_cells(file, plain, seeds)
    raise typer.BadParameter(f"unknown study {study!r}: lr, main or compositions")


def run_quick(bench: Bench, known: CellFile, deadline: float) -> bool:
    """The ordering on narrow drift, means of three seeds; whether it came out."""
    cells = main_cells(known, Cell(0, OURS), QUICK, QUICK_SEEDS)
    run_cells(bench, cells, deadline)
    points = [scores(bench.file[cell], cell.scenario)["drifted"] for cell in cells if cell in bench.file]
    if len(points) < len(cells):
        print("STAT-Syn > the same evidence > vanilla: not known yet")
        return False
    means = [mean(points[place :: len(QUICK)]) for place in range(len(QUICK))]
    held = means == sorted(means, reverse=True)
    told = ", ".join(f"{name} {points:.1f}" for name, points in zip(QUICK, means, strict=True))
    print(f"drifted traffic: {told}; STAT-Syn > the same evidence > vanilla: {'yes' if held else 'NO'}")
    return held


def main(
    study: Annotated[str, typer.Option(help="lr, main or compositions.")] = "main",
    seeds: Annotated[str, typer.Option(help="With commas.")] = "0,1,2,3,4",
    methods: Annotated[str, typer.Option(help="With commas.")] = ",".join(METHODS),
    scenario: Annotated[str, typer.Option(help=", ".join(SCENARIOS))] = "narrow",
    arch: Annotated[str, typer.Option(help="llama or qwen.")] = "llama",
    replay: Annotated[str, typer.Option(help=", ".join(REPLAYS))] = "loop",
    steps: Annotated[int, typer.Option(help="Optimizer steps of a round.")] = Cell.steps,
    items: Annotated[int, typer.Option(help="Exam items of each skill.")] = Cell.items,
    size: Annotated[str, typer.Option(help=", ".join(SIZES))] = Cell.size,
    minutes: Annotated[float, typer.Option(help="No cell begins after so many minutes.")] = 24 * 60.0,
    quick: Annotated[bool, typer.Option(help="Three methods, three seeds: only the ordering.")] = False,
    cells: Annotated[Path | None, typer.Option(help="The file of finished cells.")] = None,
    work: Annotated[Path, typer.Option(help="What can be made again.")] = WORK,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the scores here.")] = None,
) -> None:
    """Run the cells of a study."""
    torch.set_num_threads(1)
    deadline = time.monotonic() + 60 * minutes
    bench = Bench(CellFile(cells or (work / "quick.jsonl" if quick else CELLS)), work, arch)
    held = True
    if quick:
        held = run_quick(bench, CellFile(CELLS), deadline)
    else:
        plain = Cell(0, OURS, scenario, arch, replay, steps=steps, items=items, size=size)
        names, numbers = methods.split(","), [int(seed) for seed in seeds.split(",")]
        run_cells(bench, study_cells(study, bench.file, plain, names, numbers), deadline)
    if json_file is not None:
        rows = [asdict(cell) | scores(result, cell.scenario) for cell, result in bench.file.items()]
        json_file.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    raise typer.Exit(0 if held else 1)


if __name__ == "__main__":
    typer.run(main)
