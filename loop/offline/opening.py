"""Wiring of `skillloop stat`: which implementation stands behind each port, by configuration."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import cache, partial
from pathlib import Path

from agent.budget import Caps
from agent.plan import StrategyName
from graphs.chat.meter import Books
from graphs.chat.settings import callers
from graphs.curate.neighbours import Embed, sentence_transformer, tfidf
from graphs.filters.grading import MathGrader
from graphs.teacher import CatalogTeacher, PaidTeacher
from loop.backends import close, prepare
from loop.config import ConfigError
from loop.doors import open_student, open_teacher, open_trainer
from loop.offline.bench import Bench
from loop.offline.config import StatConfig
from loop.offline.folder import RunFolder
from loop.offline.journal import Runner
from loop.offline.ledger import ROUND, LedgerFile, read_ledger
from loop.offline.rewards import remembered_rewards
from loop.tasks.grading import grade_text
from loop.tasks.student import Student, base_dir, model_id
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
    base = None if config.student.base is None else base_dir(config.student.base)
    rewards_id = model_id(config.filters.prm, "filters.prm")
    with (
        folder.locked(),
        MathGrader() as grade_math,
        open_catalog_teacher(config, folder) as teacher,
        remembered_rewards(config.filters.prm, rewards_id, folder.work / "rewards.jsonl") as step_rewards,
    ):
        yield Bench(
            config=config,
            folder=folder,
            teacher=teacher,
            grade=grade_math if config.filters.grade == "math" else grade_text,
            runner=Runner(folder.work, callers(config.teacher.chat), progress, crash),
            open_student=cache(partial(_student, config)),
            open_trainer=lambda: open_trainer(config.train),
            student_id=model_id(base, "student.base"),
            embed=_embed(config),
            step_rewards=step_rewards,
            rewards_id=rewards_id,
            crash=crash,
            suffix=f"-{strategy}" if other else "",
        )


@contextmanager
def open_catalog_teacher(config: StatConfig, folder: RunFolder) -> Iterator[CatalogTeacher]:
    """The configured teacher, with its replies and costs in the run's directory; the cap counts what earlier
    starts paid. Raises `ConfigError` for one that can only diagnose."""
    with closing(LedgerFile(folder.root / "ledger.jsonl")) as ledger:
        books = Books(
            student="offline",
            replies=folder.work / "replies.sqlite",
            caps=Caps(usd_per_round=config.budget.usd_per_round),
            sink=ledger,
            before=read_ledger(ledger.path),
        )
        opened = open_teacher(config.teacher, books, config.seed)
        teacher = opened.for_round(ROUND) if isinstance(opened, PaidTeacher) else opened
        try:
            if not isinstance(teacher, CatalogTeacher):
                raise ConfigError(
                    f"teacher.kind {config.teacher.kind!r} cannot make a catalog or rewrite solutions"
                    " (graphs.teacher.CatalogTeacher), which `skillloop stat` needs"
                )
            yield teacher
        finally:
            close(opened)


def _embed(config: StatConfig) -> Embed:
    if config.embed.kind == "tfidf":
        return tfidf
    return lambda texts: sentence_transformer(config.embed.model)(texts)


def _student(config: StatConfig) -> Student:
    if config.student.base is None:
        raise ConfigError(
            "student.base is needed: give a student in Hugging Face format, or its answers in a file"
            " (answers = ...)"
        )
    return open_student(config.student.base, config.engine)
