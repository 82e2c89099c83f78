"""A task of files: questions, labels and catalog as `skillloop stat` reads and writes them
(docs/online.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from agent.catalog import SkillCatalog
from agent.items import HeldOutItem, PoolItem
from graphs.filters.grading import MathGrader
from graphs.teacher import Teacher
from loop.config import Config, ConfigError, TaskSection
from loop.tasks.grading import grade_text
from loop.tasks.questions import Question, held_out_items, pool_items, read_questions
from loop.tasks.records import CatalogRow, LabelRow
from loop.tasks.student import Student
from loop.tasks.task import Task
from streams.files import read_rows


def files_task(config: Config, student: Student, teacher: Teacher) -> Task:
    """The task of `config.task`; the student is asked through its chat template, if it has one. Raises
    `ConfigError` and `DataError`."""
    section = config.task
    if section.catalog is None or section.pool is None:
        raise ConfigError("task.kind 'files' needs task.catalog and task.pool")
    catalog = SkillCatalog.of(
        *((row.skill, row.description) for row in read_rows(section.catalog, CatalogRow))
    )
    labels = {row.question_id: row.skills for path in section.labels for row in read_rows(path, LabelRow)}
    questions = read_questions(section.pool)
    pool, held_out = _pool(section.pool, questions, labels), _held_out(section, labels, config.seed)
    grader = MathGrader()
    grade: Callable[[str, str, str], bool | None] = grader if section.grade == "math" else grade_text
    return Task(
        catalog=catalog,
        pool=pool,
        held_out=held_out,
        grade=lambda expected, answer: grade("", expected, answer),
        teacher=teacher,
        levels={item.item_id: item.level for item in questions if item.level is not None},
        grader=section.grade,
        base_dir=student.base,
        prompt=student.prompt,
        close=grader.close,
    )


def _pool(
    path: Path, questions: Sequence[Question], labels: Mapping[str, tuple[str, ...]]
) -> tuple[PoolItem, ...]:
    known = {question.item_id: question.skills or labels.get(question.item_id, ()) for question in questions}
    pool = tuple(item for item in pool_items(questions, known).values() if item.skills)
    if not pool:
        raise ConfigError(
            f"task.pool {path}: none of {len(questions)} questions has a solution and skills; "
            "name its labels in task.labels"
        )
    return pool


def _held_out(section: TaskSection, labels: dict[str, tuple[str, ...]], seed: int) -> tuple[HeldOutItem, ...]:
    sets = {path.name.split(".")[0]: read_questions(path) for path in section.held_out}
    labelled = {
        name: [
            question.model_copy(update={"skills": question.skills or labels.get(question.item_id, ())})
            for question in questions
        ]
        for name, questions in sets.items()
    }
    items = held_out_items(labelled, None, seed)
    if not any(item.skills for item in items):
        names = ", ".join(map(str, section.held_out))
        raise ConfigError(
            f"task.held_out {names}: no question has an answer and skills, "
            "so the gate could test no skill; label some"
        )
    return tuple(items)
