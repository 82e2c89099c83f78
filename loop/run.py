"""Long-running commands: all workers in one process, or one worker in its own, and the two manual
switches."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from loop.backends import open_log, prepare
from loop.config import Config, ConfigError
from loop.embedded import Embedded
from loop.stopping import Stop, WorkerStopped
from loop.wiring import open_services, round_workers, set_up_student
from loop.workers.deploy import set_route
from loop.workers.monitor import MonitorWorker
from loop.workers.round import RoundWorker
from loop.workers.services import Ports, Services
from streams.consume import calm_collector
from streams.log import LogUnavailable
from streams.state.store import StoreUnavailable
from training.errors import RegistryUnavailable

logger = logging.getLogger(__name__)

IDLE_S = 1.0
RETRY_S = 5.0
SETUP_S = 120
SAYS_S = 2
T = TypeVar("T")
WORKERS = {"curate": ("planned",), "train": ("curated", "trained"), "deploy": ("judged",)}


def run_up(config: Config, root: Path, once: bool, console: Console) -> None:
    """All workers, until interrupted (or idle, with `once`)."""
    root = prepare(root)
    with Stop() as stop, _opened(config, root, stop, once) as services, open_log(config, root) as log:
        _patiently(partial(set_up_student, services), stop, once)
        embedded = Embedded(services, log)
        console.print(
            f"serving the loop of student {config.student.name!r} from {root}; stop with Ctrl-C",
            highlight=False,
        )
        if once:
            embedded.settle()
        else:
            _until_stopped(embedded.step, stop)


def run_worker(config: Config, root: Path, kind: str, once: bool) -> None:
    """One worker of this kind, until interrupted (or idle, with `once`)."""
    root = prepare(root)
    with Stop() as stop, _opened(config, root, stop, once) as services:
        if kind == "deploy":
            _patiently(partial(set_up_student, services), stop, once)
        else:
            _wait_for_student(services)
        if kind == "monitor":
            _run_monitor(services, once, stop)
            return
        workers = [worker for worker in round_workers(services) if worker.STATE in WORKERS[kind]]
        _run(lambda: _turn(workers), once, stop)


def _opened(config: Config, root: Path, stop: Stop, once: bool) -> Services:
    return _patiently(partial(open_services, config, root, Ports(stop=stop.event)), stop, once)


def _patiently(begin: Callable[[], T], stop: Stop, once: bool) -> T:
    """What `begin` returns once the servers that it needs are there (`once`: tried once); it says which
    is awaited. Raises `WorkerStopped` when the process is told to stop meanwhile."""
    while True:
        try:
            return begin()
        except (StoreUnavailable, LogUnavailable, RegistryUnavailable) as exc:
            if once:
                raise
            logger.warning("waiting, next attempt in %g s: %s", RETRY_S, exc)
        if stop.event.wait(RETRY_S):
            raise WorkerStopped


def _run_monitor(services: Services, once: bool, stop: Stop) -> None:
    with open_log(services.config, services.root, None) as log:
        monitor = MonitorWorker(services, log)
        calm_collector()
        try:
            _run(monitor.step, once, stop)
        finally:
            monitor.loop.close()


def _wait_for_student(services: Services) -> None:
    """The deploy worker sets the student up. Raises `ConfigError` when none does within `SETUP_S` seconds."""
    for waited_s in range(SETUP_S):
        if services.rounds.route(services.student) is not None:
            return
        if waited_s == SAYS_S:
            logger.warning("waiting until `skillloop worker deploy` sets student %r up", services.student)
        if services.stop.wait(1.0):
            raise WorkerStopped
    raise ConfigError(
        f"student {services.student!r} was not set up within {SETUP_S} s; "
        "start `skillloop worker deploy`, which does it"
    )


def _turn(workers: list[RoundWorker]) -> bool:
    return any([worker.step() for worker in workers])


def _run(step: Callable[[], bool], once: bool, stop: Stop) -> None:
    if not once:
        _until_stopped(step, stop)
        return
    while step() and not stop.event.is_set():
        pass


def _until_stopped(step: Callable[[], bool], stop: Stop) -> None:
    """Call `step` until the process is told to stop; pause while there is nothing to do or a dependency is
    away."""
    while not stop.event.is_set():
        try:
            busy = step()
        except (StoreUnavailable, LogUnavailable) as exc:
            logger.warning("waiting: %s", exc)
            busy = False
        if not busy:
            stop.event.wait(IDLE_S)


def promote_version(config: Config, root: Path, version: int, console: Console) -> None:
    """Make a version the champion, without the gate."""
    with open_services(config, prepare(root)) as services:
        set_up_student(services)
        _switch(services, version, "promote", console)


def roll_back(config: Config, root: Path, console: Console) -> None:
    """Make the previous champion the champion again. Raises `ConfigError` when there is none."""
    with open_services(config, prepare(root)) as services:
        set_up_student(services)
        previous = services.registry.alias("previous")
        if previous is None:
            raise ConfigError(
                f"student {services.student!r} has no previous champion; "
                "`skillloop rounds list` shows what there is"
            )
        _switch(services, previous, "rollback", console)


def _switch(services: Services, version: int, action: str, console: Console) -> None:
    services.load(version)
    if action == "rollback":
        services.registry.rollback(services.registry.champion().version)
    else:
        services.registry.promote(version)
    set_route(services, version, None, action, services.clock.now())
    console.print(
        f"version {version} of {services.student!r} is champion and is served from now on", highlight=False
    )
