"""Stages train and evaluate: a LoRA round on the data set, and both students on the held-out sets (paper
section 4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from agent.items import Example, Frozen, HeldOutItem, Provenance
from graphs.filters.final_answers import final_answer
from loop.config import ConfigError
from loop.offline.bench import Bench
from loop.offline.config import StatTrainSection
from loop.offline.folder import settings_sha256
from loop.offline.records import DatasetRow
from loop.offline.stages.answers import generate
from loop.offline.stages.stage import Result, Stage
from loop.tasks.questions import held_out_items
from serving.engine import Sampling
from streams.files import DataError, text_sha256
from training.evaluate import Evaluation, evaluate
from training.paired import mcnemar_p
from training.trainer import TrainingJob


class TrainRow(Frozen):
    """A finished round. `adapter` is a folder inside the run's directory."""

    adapter: str
    sha256: str
    steps: int
    examples: int
    too_long: int
    tokens: int
    seconds: float
    final_loss: float | None


class EvaluatedRow(Frozen):
    """One held-out question before and after."""

    item_id: str
    stratum: str
    skills: tuple[str, ...]
    before: bool
    after: bool


def examples_of(bench: Bench, rows: Sequence[DatasetRow]) -> list[Example]:
    """The data set as the trainer takes it, each question in the form in which the student is asked."""
    student = bench.open_student()
    return [
        Example(
            example_id=row.id,
            prompt=student.prompt(row.messages[0].content),
            completion=row.messages[1].content,
            skills=row.skills,
            provenance=Provenance(
                strategy="synthesize" if row.origin.kind == "synthesized" else "select",
                skill=row.origin.skill,
                source_ids=row.origin.source_ids,
                teacher=row.origin.teacher,
                prompt_version=row.origin.prompt_version,
                usage=row.origin.usage,
            ),
        )
        for row in rows
    ]


def _fitting(bench: Bench, examples: Sequence[Example], max_length: int) -> list[Example]:
    """The examples that fit; the trainer refuses longer ones rather than cut an answer off."""
    tokenizer = bench.open_student().tokenizer
    prompts = tokenizer([pair.prompt for pair in examples])["input_ids"]
    completions = tokenizer([pair.completion for pair in examples], add_special_tokens=False)["input_ids"]
    return [
        pair
        for pair, prompt, completion in zip(examples, prompts, completions, strict=True)
        if len(prompt) + len(completion) + 1 <= max_length
    ]


def _train_inputs(bench: Bench) -> dict[str, str]:
    dataset = bench.folder.result_sha256(bench.named("dataset"))
    return {
        "dataset": dataset,
        "settings": settings_sha256(bench.config.train, bench.config.seed),
        "student": bench.student_id,
    }


def steps_of(section: StatTrainSection, examples: int) -> int:
    """As many optimizer steps as the epochs come to."""
    steps = max(1, math.ceil(examples * section.epochs / section.batch_size))
    return min(steps, section.max_steps or steps)


def _train(bench: Bench) -> Result:
    if bench.config.student.base is None:
        raise ConfigError("student.base is needed to train; set it, or stop with --until dataset")
    section = bench.config.train
    rows = bench.folder.rows(bench.named("dataset"), DatasetRow)
    everything = examples_of(bench, rows)
    examples = _fitting(bench, everything, section.max_length)
    if not examples:
        raise DataError(f"no pair fits into train.max_length = {section.max_length} tokens; raise it")
    inputs = _train_inputs(bench)
    digest = text_sha256(*(f"{key} {inputs[key]}" for key in sorted(inputs)))
    job = TrainingJob(
        base_dir=bench.open_student().base,
        champion=None,
        examples=examples,
        out_dir=bench.folder.root / bench.named("train") / digest[:12],
        steps=steps_of(section, len(examples)),
        batch_size=section.batch_size,
        max_length=section.max_length,
        seed=bench.config.seed,
        right=lambda solution, answer: bench.grade("", final_answer(solution) or "", answer),
    )
    trainer = bench.open_trainer()
    done = trainer.train(job, lambda step, total, loss: bench.runner.progress("train", step, total))
    row = TrainRow(
        adapter=str(done.adapter_dir.relative_to(bench.folder.root)),
        sha256=done.sha256,
        steps=done.steps,
        examples=len(examples),
        too_long=len(everything) - len(examples),
        tokens=done.tokens,
        seconds=round(done.seconds, 1),
        final_loss=done.final_loss if math.isfinite(done.final_loss) else None,  # too few steps for a report
    )
    notes = (
        [f"{row.too_long} pairs are longer than {section.max_length} tokens and were not trained on"]
        if row.too_long
        else []
    )
    figures: dict[str, float] = {"examples": row.examples, "steps": row.steps, "tokens": row.tokens}
    return Result(
        [row], figures if row.final_loss is None else {**figures, "final loss": row.final_loss}, notes
    )


def _evaluate_inputs(bench: Bench) -> dict[str, str]:
    config = bench.config
    settings = settings_sha256(config.evaluate, config.student, config.filters.grade, config.seed)
    train = bench.folder.result_sha256(bench.named("train"))
    return {**bench.data_sha256, "train": train, "settings": settings, "student": bench.student_id}


def _evaluate(bench: Bench) -> Result:
    items = held_out_items(bench.data.held_out, bench.config.evaluate.items, bench.config.seed)
    if not items:
        raise DataError(
            "there is no held-out set with answers; name one in data.held_out, or stop with --until train"
        )
    trained = bench.folder.rows(bench.named("train"), TrainRow)[0]
    before = _measured(bench, items, None)
    after = _measured(bench, items, bench.folder.root / trained.adapter)
    right = {outcome.item_id: outcome.correct is True for outcome in after.outcomes}
    rows = [
        EvaluatedRow(
            item_id=outcome.item_id,
            stratum=outcome.stratum,
            skills=outcome.skills,
            before=outcome.correct is True,
            after=right[outcome.item_id],
        )
        for outcome in before.outcomes
    ]
    return Result(rows, _gains(rows))


def _measured(bench: Bench, items: Sequence[HeldOutItem], adapter: Path | None) -> Evaluation:
    """One student on all items; the base is version 1, the trained one version 2."""
    sampling = Sampling(
        bench.config.student.max_new_tokens, bench.config.evaluate.temperature, 1, bench.config.seed
    )

    def ask(questions: Sequence[str]) -> list[str]:
        return [texts[0] for texts in generate(bench, "evaluate", list(questions), sampling, adapter)]

    return evaluate(ask, lambda item, answer: bench.grade(item.question, item.answer, answer) is True, items)


def _gains(rows: Sequence[EvaluatedRow]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for stratum in sorted({row.stratum for row in rows}):
        own = [row for row in rows if row.stratum == stratum]
        gained, lost = (
            sum(row.after and not row.before for row in own),
            sum(row.before and not row.after for row in own),
        )
        figures[f"{stratum}: questions"] = len(own)
        figures[f"{stratum}: accuracy before"] = sum(row.before for row in own) / len(own)
        figures[f"{stratum}: accuracy after"] = sum(row.after for row in own) / len(own)
        figures |= {
            f"{stratum}: gained": gained,
            f"{stratum}: lost": lost,
            f"{stratum}: McNemar p": mcnemar_p(gained, lost),
        }
    return figures


def train(name: str) -> Stage:
    """The stage that trains; `name` is that of its file."""
    return Stage(name, _train_inputs, _train)


def evaluation(name: str) -> Stage:
    """The stage that measures before and after; `name` is that of its file."""
    return Stage(name, _evaluate_inputs, _evaluate)
