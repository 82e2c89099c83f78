"""Wiring: which implementation stands behind each port, by configuration. The only place that knows them all."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.utils.logging import disable_progress_bar

from graphs.assess import Assessor
from graphs.chat_settings import callers
from graphs.filters import FilterParts, filters
from graphs.monitor import STOPS_THE_BATCH, MonitorContext
from loop.backends import open_store
from loop.config import Config, ConfigError
from loop.curate import CurateWorker
from loop.decide import Decider
from loop.deploy import DeployWorker, set_route
from loop.folding import fold_handler
from loop.monitor import GROUP, DiagnoseHandler, StoredLabels
from loop.round_worker import TRANSIENT, RoundWorker
from loop.services import Services, nobody
from loop.task import Task
from loop.train import JudgeWorker, TrainWorker
from serving.step_rewards import RewardModel
from serving.transformers_engine import EngineSettings, TransformersEngine
from streams.clock import SystemClock
from streams.consume import ConsumeLoop, ConsumeSettings, Handler
from streams.crash import ENVIRONMENT, crash_point
from streams.log import EventLog, LogUnavailable
from streams.outbox import OutboxRelay
from streams.rounds import RoundStore
from streams.store import StateStore, StoreUnavailable
from training.registry import Registry

logger = logging.getLogger(__name__)


def open_registry(config: Config, root: Path) -> Registry:
    """MLflow: the configured server, or a SQLite file in the run's directory."""
    uri = config.mlflow.tracking_uri
    if uri:
        return Registry(uri, config.student.name)
    return Registry(f"sqlite:///{root / 'mlflow.db'}", config.student.name, root / "mlartifacts")


def open_task(config: Config, root: Path, store: StateStore) -> Task:
    """What the student is for: the demo's world, or files of questions with a chat model as the teacher.

    Raises `ConfigError` for a teacher that cannot teach the task.
    """
    if config.task.kind == "files":
        from loop.files_task import files_task

        return files_task(config, root, store)
    from loop.demo.task import demo_task

    if config.teacher.kind != "symbolic":
        raise ConfigError(f"teacher.kind {config.teacher.kind!r} needs task.kind 'files': the demo's world has its symbolic teacher")
    return demo_task(config)


def open_services(config: Config, root: Path, ports: Mapping[str, Any] | None = None) -> Services:
    """Everything the workers need; `ports` replaces single parts (clock, crash, engine, registry, task, listen, owner)."""
    disable_progress_bar()  # the loop shows its own
    given = dict(ports or {})
    store = given.get("store") or open_store(config, root)
    task = given.get("task") or open_task(config, root, store)
    services = Services(
        config=config,
        root=root,
        store=store,
        rounds=RoundStore(store),
        task=task,
        engine=given.get("engine") or TransformersEngine(task.base_dir, EngineSettings(batch_size=config.student.batch_size)),
        registry=given.get("registry") or open_registry(config, root),
        clock=given.get("clock") or SystemClock(),
        crash=given.get("crash") or crash_point(os.environ.get(ENVIRONMENT)),
        owner=given.get("owner") or "embedded",
        listen=given.get("listen") or nobody,
    )
    return services


def worker_name() -> str:
    """A lease owner's name for a worker process."""
    return f"{socket.gethostname()}:{os.getpid()}"


def set_up_student(services: Services) -> None:
    """Register the base as the first champion and route to it; a student that exists is left alone.

    One process does this: `up`, `demo` or the deploy worker, which is the one writer of aliases.
    """
    base = services.registry.register_base(services.task.base_dir)
    if services.rounds.route(services.student) is None:
        set_route(services, base.version, None, "promote", services.clock.now())


class MonitorWorker:
    """Consumes outputs, relays the outbox, asks the policy."""

    def __init__(self, services: Services, log: EventLog) -> None:
        task, settings = services.task, services.config.monitor
        folds = settings.source == "diagnoses"
        consume = ConsumeSettings(
            group=GROUP,
            topics=("diagnoses",) if folds else ("student-outputs",),
            max_records=settings.max_records,
            max_attempts=settings.max_attempts,
            backoff_s=settings.backoff_s,
            transient=(*TRANSIENT, *STOPS_THE_BATCH),
            look_first=not folds,
        )
        handler: Handler = fold_handler
        if not folds:
            labels = StoredLabels(services.store, task.catalog)
            context = MonitorContext(task.teacher, task.catalog, assessors(services.config, task), labels, crash=services.crash)
            threads = callers(services.config.teacher.chat)
            handler = DiagnoseHandler(context, labels, settings, services.clock, threads, book=not task.books_itself)
        self.loop = ConsumeLoop(log, services.store, handler, consume, clock=SystemClock(), crash=services.crash)
        self.relay = OutboxRelay(services.store, log, services.crash)
        self.decider = Decider(services.config, services.store, services.rounds, task)
        self._listen = services.listen

    def step(self) -> bool:
        """One batch, then the outbox, then the policy. True when something was consumed."""
        done = self.loop.step()
        self.send()
        standing = self.decider.step()
        if standing is not None:
            self._listen("standing", {"standing": standing})
        return done > 0

    def send(self) -> None:
        """Empty the outbox; what cannot be sent now stays there for the next time."""
        try:
            self.relay.step()
        except (LogUnavailable, StoreUnavailable) as exc:
            logger.warning("the outbox waits: %s", exc)

    def pause(self, seconds: float) -> None:
        """Wait for a dependency that is away (real time, whatever clock the loop has)."""
        SystemClock().sleep(seconds)


def assessors(config: Config, task: Task) -> tuple[Assessor, ...]:
    """The difficulty filters in order of trust. Raises `ConfigError` for one that is unknown or lacks its part."""
    prm = config.monitor.prm
    parts = FilterParts(grade=lambda _, gold, answer: task.grade(gold, answer), rewards=None if prm is None else RewardModel(prm))
    try:
        return filters(config.monitor.filters, parts)
    except ValueError as exc:
        raise ConfigError(f"monitor.filters: {exc}") from exc


def round_workers(services: Services) -> tuple[RoundWorker, ...]:
    """The workers that carry a round from its plan to its end."""
    return CurateWorker(services), TrainWorker(services), JudgeWorker(services), DeployWorker(services)
