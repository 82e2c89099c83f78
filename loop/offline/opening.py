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
from graphs.chat.meter import Meter
from graphs.chat.settings import ChatSettings, callers
from graphs.chat.teacher import ChatTeacher
from graphs.curate.neighbours import embedding
from graphs.filters.grading import MathGrader
from graphs.remembered import RememberedTeacher
from graphs.teacher import CatalogTeacher
from loop.backends import prepare
from loop.config import ConfigError
from loop.offline.bench import STUDENT, Bench, Student
from loop.offline.config import StatConfig
from loop.offline.folder import RunFolder
from loop.offline.journal import Runner
from loop.offline.rewards import remembered_rewards
from loop.offline.scripted import scripted_teacher
from loop.tasks.grading import grade_text
from loop.tasks.student import HfStudent, model_id
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
    rewards_id = model_id(config.filters.prm, "filters.prm")
    with (
        folder.locked(),
        MathGrader() as grade_math,
        closing(open_ledger(folder)) as ledger,
        SqliteReplies(folder.work / "replies.sqlite") as replies,
        open_teacher(config, replies, ledger) as teacher,
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
            open_student=_opener(config),
            student_id=model_id(config.student.base, "student.base"),
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
def open_teacher(config: StatConfig, replies: SqliteReplies, ledger: StateStore) -> Iterator[CatalogTeacher]:
    """The configured teacher, with a memory: none of its replies is asked for twice."""
    if config.teacher.kind == "scripted" or config.teacher.chat is None:
        yield RememberedTeacher(scripted_teacher(config.teacher.script), replies)
        return
    with closing(chat_teacher(config.teacher.chat, config.budget.cap_usd, replies, ledger)) as teacher:
        yield teacher


def chat_teacher(
    settings: ChatSettings, cap_usd: float | None, replies: SqliteReplies, ledger: StateStore
) -> ChatTeacher:
    """A chat teacher whose calls are booked on one round, so that the cap per round counts all that the run
    has paid, also at earlier starts."""
    caps, before = Caps(usd_per_round=cap_usd), entries(ledger, STUDENT)
    meter = Meter(settings.model, settings.price, caps, partial(book, ledger), before)
    return ChatTeacher.connect(settings, replies, meter, student=STUDENT).for_round("stat")


def _opener(config: StatConfig) -> Callable[[], Student]:
    """Opens the student once, when it is first needed."""

    @cache
    def opened() -> Student:
        if config.student.base is None:
            raise ConfigError(
                "student.base is needed: give a student in Hugging Face format, "
                "or its answers in a file (answers = ...)"
            )
        return HfStudent(config.student.base, config.student.batch_size)

    return opened
