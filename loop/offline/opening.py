"""Wiring of `skillloop stat`: which implementation stands behind each port, by configuration."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path

from agent.budget import Caps
from agent.plan import StrategyName
from graphs.chat.cache import SqliteReplies
from graphs.chat.meter import Meter
from graphs.chat.settings import ChatSettings, callers
from graphs.chat.teacher import ChatTeacher
from graphs.curate.neighbours import embedding
from graphs.filters.grading import MathGrader
from graphs.teacher import CatalogTeacher
from loop.backends import prepare
from loop.config import ConfigError
from loop.offline.bench import Bench, Student
from loop.offline.config import StatConfig
from loop.offline.folder import RunFolder
from loop.offline.journal import Runner
from loop.offline.ledger import ROUND, LedgerFile, read_ledger
from loop.offline.rewards import remembered_rewards
from loop.offline.scripted import scripted_teacher
from loop.tasks.grading import grade_text
from loop.tasks.student import HfStudent, model_id
from streams.crash import ENVIRONMENT, crash_point

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
        open_teacher(config, folder) as teacher,
        remembered_rewards(config.filters.prm, rewards_id, folder.work / "rewards.jsonl") as step_rewards,
    ):
        yield Bench(
            config=config,
            folder=folder,
            teacher=teacher,
            grade=grade_math if config.filters.grade == "math" else grade_text,
            runner=Runner(folder.work, callers(config.teacher.chat), progress, crash),
            open_student=_opener(config),
            student_id=model_id(config.student.base, "student.base"),
            embed=embedding(config.embed),
            step_rewards=step_rewards,
            rewards_id=rewards_id,
            crash=crash,
            suffix=f"-{strategy}" if other else "",
        )


@contextmanager
def open_teacher(config: StatConfig, folder: RunFolder) -> Iterator[CatalogTeacher]:
    """The configured teacher. A chat model's replies and costs are kept in the run's directory."""
    if config.teacher.kind == "scripted" or config.teacher.chat is None:
        yield scripted_teacher(config.teacher.script)
        return
    with (
        SqliteReplies(folder.work / "replies.sqlite") as replies,
        closing(LedgerFile(folder.root / "ledger.jsonl")) as ledger,
    ):
        with closing(chat_teacher(config.teacher.chat, config.budget.cap_usd, replies, ledger)) as teacher:
            yield teacher


def chat_teacher(
    settings: ChatSettings, cap_usd: float | None, replies: SqliteReplies, ledger: LedgerFile
) -> ChatTeacher:
    """A chat teacher whose calls are booked on the run; the cap counts what earlier starts paid."""
    meter = Meter(
        settings.model, settings.price, Caps(usd_per_round=cap_usd), ledger, read_ledger(ledger.path)
    )
    return ChatTeacher.connect(settings, replies, meter, student="offline").for_round(ROUND)


def _opener(config: StatConfig) -> Callable[[], Student]:
    """Opens the student once, when it is first needed."""

    @cache
    def opened() -> Student:
        if config.student.base is None:
            raise ConfigError(
                "student.base is needed: give a student in Hugging Face format, or its answers in a file"
                " (answers = ...)"
            )
        return HfStudent(config.student.base, config.student.batch_size)

    return opened
