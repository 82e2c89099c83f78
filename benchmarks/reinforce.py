"""Does reinforcement add to a supervised skill-targeted round, as the STAT paper says of GRPO (table 2)?

    python -m benchmarks.reinforce [--seeds 0,1] [--minutes 60]

From the shipped student: a reinforced round; a supervised one (that of `benchmarks.forgetting`, first drift);
after it a reinforced one, or, as the control, a second supervised one on fresh examples of the same skills.
All rounds have the same skills and the product's mix of new and replayed examples. A supervised round trains
160 steps of 32 examples; a reinforced one `GRPO_STEPS` steps of 16 questions with 8 sampled answers each.
The tables say what each cost in tokens (sampled ones included) and seconds.

A finished (arm, seed) is a line of `benchmarks/reinforce_cells.jsonl`. `python -m benchmarks.learning_table`
makes the table.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from benchmarks.forgetting import ARMS, SCENARIO, SCHEDULE, STEPS, Life, Rounds, run_all, told
from benchmarks.learning_cells import DEFAULT_LR, Result
from benchmarks.learning_data import BATCH
from benchmarks.learning_scores import scores
from loop.tasks.student import student_dir
from loop.tasks.world.checker import final_answer, grade
from training.grpo import GrpoTrainer
from training.settings import GrpoSettings, SftSettings
from training.sft import SftTrainer
from training.trainer import TrainedAdapter, TrainingJob

CELLS = Path(__file__).with_name("reinforce_cells.jsonl")
WORK = Path("runs/reinforce")
GRPO_STEPS = 60
QUESTIONS = 16
SHAPE = SftSettings(lr=DEFAULT_LR, save_every=0, blend=ARMS["loop"].blend)
GRPO = GrpoSettings(lr=1e-3, max_new_tokens=120, micro_batch_size=64, save_every=0)
"""The learning rate is the best of 3e-4, 1e-3 and 3e-3 on validation items (40 steps, one seed)."""
STAGES: Mapping[str, tuple[str, ...]] = {
    "grpo": ("grpo",),
    "sft": ("sft",),
    "sft-sft": ("sft", "sft"),
    "sft-grpo": ("sft", "grpo"),
}
NAMES = {
    "grpo": "GRPO",
    "sft": "one supervised round",
    "sft-sft": "two supervised rounds",
    "sft-grpo": "one supervised round, then GRPO",
}
SHOWN = ("targets", "drifted", "original", "chains", "unseen pairs", "unseen order")


def lived(name: str, seed: int, work: Path) -> Iterator[Result]:
    """The exam of the shipped student, then after each stage of an arm."""
    life = Life(ARMS["loop"], seed, work / str(seed), student_dir("llama"))
    before = life.right()
    yield life.result(before, before)
    for number, stage in enumerate(STAGES[name], start=1):
        trained = _round(life, number, "-".join(STAGES[name][:number]), stage)
        life.champion = trained.adapter_dir
        result = life.result(life.right(), before, trained.tokens)
        yield result.model_copy(update={"seconds": round(trained.seconds, 1)})


def _round(life: Life, number: int, folder: str, stage: str) -> TrainedAdapter:
    new = life.new(number, SCHEDULE[0])
    old = life.replayed(number, SCHEDULE[0], new, {}, {})
    steps, batch = (STEPS, BATCH) if stage == "sft" else (GRPO_STEPS, QUESTIONS)
    job = TrainingJob(
        life.base, life.champion, life.mix(number, new, old), life.folder / folder, steps, batch, 256,
        life.seed, right=lambda solution, said: grade(final_answer(solution) or "", said),
    )  # fmt: skip
    trainer = SftTrainer(SHAPE) if stage == "sft" else GrpoTrainer(GRPO, SHAPE)
    return trainer.train(job)


def table(runs: Sequence[Rounds]) -> str:
    """Scores after the last stage, and what all stages cost, as Markdown."""
    lines = [
        f"| | seeds | {' | '.join(SHOWN)} | tokens | seconds |",
        "|---|---|" + "---|" * (len(SHOWN) + 2),
    ]
    lives = {name: [run for run in runs if run.arm == name] for name in STAGES}
    rows = {NAMES[name]: [run.results[1:] for run in chosen] for name, chosen in lives.items() if chosen}
    shipped = {"the shipped student": [runs[0].results[:1]]}
    for name, results in (shipped | rows).items():
        points = [scores(stages[-1], SCENARIO) for stages in results]
        tokens = np.mean([sum(stage.tokens for stage in stages) for stages in results])
        seconds = np.mean([sum(stage.seconds for stage in stages) for stages in results])
        texts = [told([each[score] for each in points], "") for score in SHOWN]
        lines.append(f"| {name} | {len(results)} | {' | '.join(texts)} | {tokens:,.0f} | {seconds:,.0f} |")
    return "\n".join(["### Reinforcement after a supervised round", *lines, ""])


def main(
    seeds: Annotated[str, typer.Option(help="With commas.")] = "0,1,2",
    arms: Annotated[str, typer.Option(help="With commas.")] = ",".join(STAGES),
    cells: Annotated[Path, typer.Option(help="A line for each finished arm and seed.")] = CELLS,
    work: Annotated[Path, typer.Option(help="What can be made again.")] = WORK,
    minutes: Annotated[float, typer.Option(help="No arm begins after so many minutes.")] = 24 * 60.0,
) -> None:
    """Run what is not finished, then print the table."""

    def live(name: str, seed: int) -> Iterable[Result]:
        return lived(name, seed, work)

    if runs := run_all(arms, seeds, (*STAGES,), cells, minutes, live):
        print(table(runs))


if __name__ == "__main__":
    typer.run(main)
