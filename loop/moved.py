"""What became of keys of earlier versions, and where keys of the other configuration belong: for the errors
that they get."""

from __future__ import annotations

from collections.abc import Mapping

from training.settings import SftSettings

MOVED: Mapping[str, str] = {
    **{f"train.{name}": f"is now train.sft.{name}" for name in SftSettings.model_fields},
    **{
        f"teacher.{name}": f"is now teacher.symbolic.{name}"
        for name in ("error_rate", "abstain_rate", "solve_error_rate")
    },
    "train.steps": "is no longer set: the policy gives each round its steps (policy.base_steps)",
    "train.seed": "is no longer set: it follows from seed",
    "train.sft.steps": "is no longer set: it follows from train.epochs and train.max_steps",
    "train.sft.batch_size": "is now train.batch_size",
    "train.sft.max_length": "is now train.max_length",
    "student.batch_size": "is now engine.transformers.batch_size",
    "mlflow": "is now registry.mlflow",
    "teacher.script": "is now teacher.scripted.script",
    "curate.synthesis": "is now strategy, where questions_per_prompt, references_per_prompt and "
    "solutions_per_question are questions, references and solutions",
    "curate.min_agreement": "is now strategy.min_agreement",
    "gate.small_skills": "is no longer set: no skill needs a number of items of its own (decision 0027)",
    "train.sft.seed": "is no longer set: it follows from seed",
    "budget.train_seconds_per_round": "is no longer set: it was never enforced",
    "budget.cap_usd": "is now budget.usd_per_round: a run of `skillloop stat` is one round",
}
"""What became of the keys of earlier versions, for the error that an old file gets."""

_STAT = "belongs to `skillloop stat`; the loop has"
NOT_HERE: Mapping[str, str] = {
    "answers": f"{_STAT} the topic student-outputs (docs/events.md)",
    "data": f"{_STAT} [task], with pool and held_out",
    "catalog": f"{_STAT} task.catalog and task.labels",
    "filters": f"{_STAT} [monitor] with the same settings, monitor.filters for the order, and task.grade",
    "evaluate": f"{_STAT} the gate, on all of task.held_out",
    "strategy.name": f"{_STAT} curate.strategy",
    "train.epochs": f"{_STAT} the policy's steps (policy.base_steps)",
    "train.max_steps": f"{_STAT} policy.max_steps",
    "student.temperature": f"{_STAT} monitor.temperature",
    "student.samples": f"{_STAT} monitor.samples",
}
"""Keys of `skillloop stat` (loop/offline/config.py), for the error that they get in the loop's file."""
