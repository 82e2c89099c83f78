"""Wiring: the services of a process, opened through the doors, and the workers on them."""

from __future__ import annotations

import logging
import os
import secrets
import socket
from contextlib import closing
from pathlib import Path

from loop.backends import NothingThere, find_store, open_store
from loop.config import Config
from loop.doors import open_engine, open_registry, open_reinforcer, open_task, open_trainer
from loop.workers.curate import CurateWorker
from loop.workers.deploy import DeployWorker
from loop.workers.judge import JudgeWorker
from loop.workers.live import Switch, set_route
from loop.workers.record import open_rounds
from loop.workers.round import RoundWorker
from loop.workers.services import Ports, Services
from loop.workers.train import TrainWorker
from streams.crash import ENVIRONMENT, crash_point
from streams.state.alone import alone
from streams.state.store import StateStore
from training.versions import Registry

logger = logging.getLogger(__name__)


def open_services(config: Config, root: Path, ports: Ports = Ports()) -> Services:
    """Everything the workers need, as configured where `ports` has no replacement."""
    store = ports.store or open_store(config, root)
    task = ports.task or open_task(config, root, store, ports.teacher)
    return Services(
        config=config,
        root=root,
        store=store,
        rounds=open_rounds(store),
        task=task,
        engine=ports.engine or open_engine(config.engine, task.base_dir),
        trainer=ports.trainer or open_trainer(config.train),
        registry=ports.registry or _registry(config, root, store),
        clock=ports.clock,
        crash=ports.crash or crash_point(os.environ.get(ENVIRONMENT)),
        owner=ports.owner or worker_name(),
        listen=ports.listen,
        stop=ports.stop,
        reinforcer=ports.reinforcer or (open_reinforcer(config.train) if config.policy.reinforce else None),
    )


def _registry(config: Config, root: Path, store: StateStore) -> Registry:
    """Workers start together, and MLflow creates its tables without a lock."""
    with alone(store):
        return open_registry(config, root)


def worker_name() -> str:
    """A lease owner's name: one process's alone, since containers share host names and process ids recur."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"


def set_up_student(services: Services) -> None:
    """Register the base as the first champion and route to it; a student that exists is left alone.

    `up`, `demo` and the deploy workers do this, which write the aliases: one at a time, since MLflow would
    register the base once for each of them.
    """
    with alone(services.store):
        base = services.registry.register_base(services.task.base_dir)
        if services.rounds.route(services.student) is None:
            set_route(services, base.version, Switch(reason="the student is set up"))


def check_run(config: Config, root: Path) -> None:
    """Check that a command that changes a run is told one that has begun; nothing is made. Raises
    `NothingThere`."""
    with closing(find_store(config, root)) as store:
        if open_rounds(store).route(config.student.name) is None:
            raise NothingThere("run", root, f"student {config.student.name!r} was never set up")
    embedded = config.registry.kind == "mlflow" and not config.registry.mlflow.tracking_uri
    if embedded and not (root / "mlflow.db").is_file():
        raise NothingThere("registry", root)


def round_workers(services: Services) -> tuple[RoundWorker, ...]:
    """The workers that carry a round from its plan to its end."""
    return CurateWorker(services), TrainWorker(services), JudgeWorker(services), DeployWorker(services)
