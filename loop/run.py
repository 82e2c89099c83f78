"""Long-running commands: all workers in one process, or one worker in its own, and the two manual
switches."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from rich.console import Console

from loop.backends import open_log, prepare
from loop.config import Config, ConfigError
from loop.embedded import Embedded
from loop.wiring import open_services, round_workers, set_up_student
from loop.workers.live import lead_users, set_route
from loop.workers.monitor import MonitorWorker
from loop.workers.round import RoundWorker
from loop.workers.services import Services
from streams.consume import calm_collector
from streams.log import LogUnavailable
from streams.state.store import StoreUnavailable

logger = logging.getLogger(__name__)

IDLE_S = 1.0
SETUP_S = 120
WORKERS = {"curate": ("planned",), "train": ("curated", "trained"), "deploy": ("judged",)}


def run_up(config: Config, root: Path, once: bool, console: Console) -> None:
    """All workers, until interrupted (or idle, with `once`)."""
    root = prepare(root)
    with open_services(config, root) as services, open_log(config, root) as log:
        set_up_student(services)
        embedded = Embedded(services, log)
        console.print(
            f"serving the loop of student {config.student.name!r} from {root}; stop with Ctrl-C",
            highlight=False,
        )
        if once:
            embedded.settle()
        else:
            _until_stopped(embedded.step)


def run_worker(config: Config, root: Path, kind: str, once: bool) -> None:
    """One worker of this kind, until interrupted (or idle, with `once`)."""
    root = prepare(root)
    with open_services(config, root) as services:
        if kind == "deploy":
            set_up_student(services)
        else:
            _wait_for_student(services)
        if kind == "monitor":
            _run_monitor(services, once)
            return
        workers = [worker for worker in round_workers(services) if worker.STATE in WORKERS[kind]]
        _run(lambda: _turn(workers), once)


def _run_monitor(services: Services, once: bool) -> None:
    with open_log(services.config, services.root, None) as log:
        monitor = MonitorWorker(services, log)
        calm_collector()
        try:
            _run(monitor.step, once)
        finally:
            monitor.loop.close()


def _wait_for_student(services: Services) -> None:
    """The deploy worker sets the student up. Raises `ConfigError` when none does within `SETUP_S` seconds."""
    for _ in range(SETUP_S):
        if services.rounds.route(services.student) is not None:
            return
        services.clock.sleep(1.0)
    raise ConfigError(
        f"student {services.student!r} was not set up within {SETUP_S} s; "
        "start `skillloop worker deploy`, which does it"
    )


def _turn(workers: list[RoundWorker]) -> bool:
    return any([worker.step() for worker in workers])


def _run(step: Callable[[], bool], once: bool) -> None:
    if not once:
        _until_stopped(step)
        return
    while step():
        pass


def _until_stopped(step: Callable[[], bool]) -> None:
    """Call `step` until SIGINT or SIGTERM; pause while there is nothing to do or a dependency is away."""
    stop = threading.Event()

    def finish(signum: int, frame: FrameType | None) -> None:
        stop.set()

    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, finish)
    while not stop.is_set():
        try:
            busy = step()
        except (StoreUnavailable, LogUnavailable) as exc:
            logger.warning("waiting: %s", exc)
            busy = False
        if not busy:
            stop.wait(IDLE_S)


def promote_version(config: Config, root: Path, version: int, console: Console) -> None:
    """Make a version the champion, without the gate."""
    with open_services(config, prepare(root)) as services:
        set_up_student(services)
        _switch(services, version, "promote", console)


def roll_back(config: Config, root: Path, console: Console, to: int | None = None) -> None:
    """Make the previous champion, or version `to`, the champion again. Raises `ConfigError` when there is
    none."""
    with open_services(config, prepare(root)) as services:
        set_up_student(services)
        target = services.registry.alias("previous") if to is None else services.registry.version(to).version
        if target is None:
            raise ConfigError(
                f"student {services.student!r} has no previous champion; "
                "`skillloop rounds list` shows what there is"
            )
        _switch(services, target, "rollback", console)


def _switch(services: Services, version: int, action: str, console: Console) -> None:
    """Load and prove, move the alias, lead users, record: as the deploy worker does, and as re-runnable."""
    services.load(version)
    champion = services.registry.champion().version
    if action == "promote":
        services.registry.promote(version)
    elif version != champion:
        services.registry.rollback(champion, version)
    lead_users(services, version)
    set_route(services, version, None, action, services.clock.now())
    console.print(
        f"version {version} of {services.student!r} is champion and is served from now on", highlight=False
    )
