"""Wiring: which implementation stands behind each port, by configuration. The only place that knows them
all."""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.utils.logging import disable_progress_bar

from loop.backends import open_store
from loop.config import Config, ConfigError
from loop.tasks.task import Task
from loop.workers.curate import CurateWorker
from loop.workers.deploy import DeployWorker, set_route
from loop.workers.judge import JudgeWorker
from loop.workers.messages import nobody
from loop.workers.record import open_rounds
from loop.workers.round import RoundWorker
from loop.workers.services import Services
from loop.workers.train import TrainWorker
from serving.transformers_engine import EngineSettings, TransformersEngine
from streams.clock import SystemClock
from streams.crash import ENVIRONMENT, crash_point
from streams.state.store import StateStore
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
        from loop.tasks.files import files_task

        return files_task(config, root, store)
    from loop.tasks.world.task import demo_task

    if config.teacher.kind != "symbolic":
        raise ConfigError(
            f"teacher.kind {config.teacher.kind!r} needs task.kind 'files': "
            "the demo's world has its symbolic teacher"
        )
    return demo_task(config)


def open_services(config: Config, root: Path, ports: Mapping[str, Any] | None = None) -> Services:
    """Everything the workers need; `ports` replaces single parts (clock, crash, engine, registry, task,
    listen, owner)."""
    disable_progress_bar()  # the loop shows its own
    given = dict(ports or {})
    store = given.get("store") or open_store(config, root)
    task = given.get("task") or open_task(config, root, store)
    services = Services(
        config=config,
        root=root,
        store=store,
        rounds=open_rounds(store),
        task=task,
        engine=given.get("engine")
        or TransformersEngine(task.base_dir, EngineSettings(batch_size=config.student.batch_size)),
        registry=given.get("registry") or open_registry(config, root),
        clock=given.get("clock") or SystemClock(),
        crash=given.get("crash") or crash_point(os.environ.get(ENVIRONMENT)),
        owner=given.get("owner") or worker_name(),
        listen=given.get("listen") or nobody,
    )
    return services


def worker_name() -> str:
    """A lease owner's name: one process's alone, since containers share host names and process ids recur."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"


def set_up_student(services: Services) -> None:
    """Register the base as the first champion and route to it; a student that exists is left alone.

    One process does this: `up`, `demo` or the deploy worker, which is the one writer of aliases.
    """
    base = services.registry.register_base(services.task.base_dir)
    if services.rounds.route(services.student) is None:
        set_route(services, base.version, None, "promote", services.clock.now())


def round_workers(services: Services) -> tuple[RoundWorker, ...]:
    """The workers that carry a round from its plan to its end."""
    return CurateWorker(services), TrainWorker(services), JudgeWorker(services), DeployWorker(services)
