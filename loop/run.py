"""Long-running commands: all workers in one process, or one worker in its own, and the two manual
switches."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from rich.console import Console

from loop.backends import open_log, prepare
from loop.config import Config, ConfigError
from loop.embedded import Embedded
from loop.wiring import open_services, round_workers, set_up_student
from loop.workers.deploy import set_route
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


class Stop:
    """Asked for by SIGINT or SIGTERM.

    Without a lock: the handler runs in the main thread, wherever that is. `threading.Event.set` there hangs
    for good when it interrupts `Event.wait`, which may hold the lock that `set` needs.
    """

    def __init__(self) -> None:
        self.asked = False
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, self._ask)

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        self.asked = True

    def wait(self, seconds: float) -> None:
        """Wait so long, or until a stop is asked for."""
        end = time.monotonic() + seconds
        while not self.asked and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))


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
    stop = Stop()
    while not stop.asked:
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
