"""The plugin of `benchmarks.hundred`: the parts of its world, put through the doors."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.hundred_world import (
    FallibleSettings,
    FallibleTeacher,
    RatedEngine,
    RatedTrainer,
    RatedTrainerSettings,
)
from graphs.teacher import Teacher
from loop.config import Config
from loop.doors import ENGINES, TASKS, TEACHERS, TRAINERS
from loop.tasks.files import files_task
from loop.tasks.student import Student
from loop.tasks.task import Task, unchanged


def hundred_task(config: Config, student: Student, teacher: Teacher) -> Task:
    """The task of the configured files; the student, which has no tokenizer, is asked with the bare
    question."""
    return replace(files_task(config, student, teacher), prompt=unchanged)


ENGINES.add("rated", lambda section, base: RatedEngine(base))
TASKS.add("hundred", hundred_task)
TEACHERS.add(
    "fallible",
    lambda section, books, seed: FallibleTeacher.kept(
        FallibleSettings.model_validate(section.options), books
    ),
)
TRAINERS.add("rated", lambda section: RatedTrainer(RatedTrainerSettings.model_validate(section.options)))
