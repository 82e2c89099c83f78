"""Wiring of `skillloop stat`: which implementation stands behind each port, by configuration."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import cache, partial
from pathlib import Path

from pydantic import ValidationError

from agent.budget import Caps, LedgerEntry
from agent.plan import StrategyName
from graphs.chat.cache import SqliteReplies
from graphs.chat.meter import Books
from graphs.chat.settings import callers
from graphs.curate.neighbours import embedding
from graphs.filters.grading import MathGrader
from graphs.remembered import RememberedTeacher
from graphs.teacher import CatalogTeacher, PaidTeacher
from loop.backends import close, prepare
from loop.config import ConfigError
from loop.doors import open_student, open_teacher, open_trainer
from loop.offline.bench import STUDENT, Bench
from loop.offline.config import StatConfig
from loop.offline.folder import RunFolder
from loop.offline.journal import Runner
from loop.offline.rewards import remembered_rewards
from loop.tasks.grading import grade_text
from loop.tasks.student import Student, base_dir, model_id
from streams.crash import ENVIRONMENT, crash_point
from streams.state.ledger import book, entries
from streams.state.store import StateStore

Progress = Callable[[str, int, int], None]


def unwatched(kind: str, done: int, total: int) -> None:
    """A progress listener that does nothing."""


@contextmanager
def open_bench(
    config: StatConfig,
    root: Path,
    strategy: StrategyName | None = None,
    progress: Progress = unwatched,
    environ: Mapping[str, str] = os.environ,
) -> Iterator[Bench]:
    """Everything a run needs, with the directory held for this process.

    `strategy` replaces the configured one; its data set gets a file of its own. Raises `RunBusy`,
    `ConfigError`, `DataError`.
    """
    folder = RunFolder(prepare(root))
    crash = crash_point(environ.get(ENVIRONMENT))
    other = strategy is not None and strategy != config.strategy.name
    if other:
        config = config.model_copy(update={"strategy": config.strategy.model_copy(update={"name": strategy})})
    base = None if config.student.base is None else base_dir(config.student.base)
    rewards_id = model_id(config.filters.prm, "filters.prm")
    with (
        folder.locked(),
        MathGrader() as grade_math,
        closing(open_ledger(folder)) as ledger,
        SqliteReplies(folder.work / "replies.sqlite") as replies,
        open_catalog_teacher(config, folder, replies, ledger) as teacher,
        remembered_rewards(config.filters.prm, rewards_id, folder.work / "rewards.jsonl") as step_rewards,
    ):
        yield Bench(
            config=config,
            folder=folder,
            ledger=ledger,
            replies=replies,
            teacher=teacher,
            grade=grade_math if config.filters.grade == "math" else grade_text,
            runner=Runner(callers(config.teacher.chat), progress, crash),
            open_student=cache(partial(_student, config)),
            open_trainer=lambda: open_trainer(config.train),
            student_id=model_id(base, "student.base"),
            embed=embedding(config.embed),
            step_rewards=step_rewards,
            rewards_id=rewards_id,
            crash=crash,
            suffix=f"-{strategy}" if other else "",
        )


def open_ledger(folder: RunFolder) -> StateStore:
    """The run's ledger, in a state store of its own, with what an earlier version booked in ledger.jsonl."""
    store = StateStore(f"sqlite:///{folder.root / 'ledger.db'}")
    earlier = folder.root / "ledger.jsonl"
    for line in earlier.read_text().splitlines() if earlier.is_file() else ():
        try:
            book(store, LedgerEntry.model_validate_json(line))
        except ValidationError:
            continue  # the last line of a process that died
    return store


@contextmanager
def open_catalog_teacher(
    config: StatConfig, folder: RunFolder, replies: SqliteReplies, ledger: StateStore
) -> Iterator[CatalogTeacher]:
    """The configured teacher, with a memory: none of its replies is asked for twice. Its calls are booked on
    one round, so that the cap per round counts all that the run has paid, also at earlier starts.

    Raises `ConfigError` for one that can only diagnose.
    """
    books = Books(
        student=STUDENT,
        replies=folder.work / "replies.sqlite",
        caps=Caps(usd_per_round=config.budget.usd_per_round),
        sink=partial(book, ledger),
        before=entries(ledger, STUDENT),
    )
    opened = open_teacher(config.teacher, books, config.seed)
    teacher = opened.for_round("stat") if isinstance(opened, PaidTeacher) else opened
    try:
        if not isinstance(teacher, CatalogTeacher):
            raise ConfigError(
                f"teacher.kind {config.teacher.kind!r} cannot make a catalog"
                " (graphs.teacher.CatalogTeacher), which `skillloop stat` needs"
            )
        yield teacher if isinstance(opened, PaidTeacher) else RememberedTeacher(teacher, replies)
    finally:
        close(opened)


def _student(config: StatConfig) -> Student:
    if config.student.base is None:
        raise ConfigError(
            "student.base is needed: give a student in Hugging Face format, or its answers in a file"
            " (answers = ...)"
        )
    return open_student(config.student.base, config.engine)
