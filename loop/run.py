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
from loop.gateway import drain_s, gateway_beside
from loop.stopping import Stop, WorkerStopped
from loop.wiring import check_run, open_services, round_workers, set_up_student
from loop.workers.live import Switch, lead_users, set_route
from loop.workers.messages import Listener
from loop.workers.monitor import MonitorWorker
from loop.workers.round import RoundWorker
from loop.workers.services import Ports, Services
from streams.backlog import Backlog
from streams.consume import calm_collector
from streams.log import EventLog, LogUnavailable
from streams.state.outbox import OutboxRelay
from streams.state.store import StoreUnavailable
from streams.topics import MONITOR_GROUP
from training.errors import RegistryUnavailable

logger = logging.getLogger(__name__)

IDLE_S = 1.0
RETRY_S = 5.0
SETUP_S = 600
SAYS_S = 2
T = TypeVar("T")
WORKERS = {"curate": ("planned",), "train": ("curated", "trained"), "deploy": ("judged",)}


def run_up(config: Config, root: Path, once: bool, listen: Listener, console: Console) -> None:
    """All workers, until interrupted; with `once`, until what the log held at the start is in the profile and
    no round is under way."""
    root = prepare(root)
    logger.info("starting the loop of student %r in %s; Ctrl-C stops it", config.student.name, root)
    with (
        Stop(drain_s(config)) as stop,
        _opened(config, root, stop, once, listen) as services,
        _patiently(partial(open_log, config, root), stop, once) as log,
    ):
        _patiently(partial(set_up_student, services), stop, once)
        embedded = _patiently(partial(Embedded, services, log), stop, once)
        try:
            if once:
                _to_the_end(services, log, embedded.monitor, embedded.catch_up, console)
            else:
                with gateway_beside(config, root, console):
                    try:
                        _until_stopped(embedded.step, stop)
                    finally:
                        stop.spare()
        finally:
            embedded.monitor.loop.close()


def run_worker(config: Config, root: Path, kind: str, once: bool, listen: Listener, console: Console) -> None:
    """One worker of this kind, until interrupted (or idle, with `once`; a monitor: until what the log held at
    the start is in the profile)."""
    root = prepare(root)
    logger.info("starting the %s worker of student %r in %s", kind, config.student.name, root)
    with Stop() as stop, _opened(config, root, stop, once, listen) as services:
        if kind == "deploy":
            _patiently(partial(set_up_student, services), stop, once)
        else:
            _wait_for_student(services, stop, once)
        if kind == "monitor":
            _run_monitor(services, once, stop, console)
            return
        workers = [worker for worker in round_workers(services) if worker.STATE in WORKERS[kind]]
        _run(lambda: _turn(workers), once, stop)


def _opened(config: Config, root: Path, stop: Stop, once: bool, listen: Listener) -> Services:
    return _patiently(partial(open_services, config, root, Ports(listen=listen, stop=stop.event)), stop, once)


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


def _run_monitor(services: Services, once: bool, stop: Stop, console: Console) -> None:
    with _patiently(partial(open_log, services.config, services.root, None), stop, once) as log:
        monitor = _patiently(partial(MonitorWorker, services, log), stop, once)
        calm_collector()
        try:
            if once:
                _to_the_end(services, log, monitor, monitor.catch_up, console)
            else:
                _until_stopped(monitor.step, stop)
        finally:
            monitor.loop.close()


def _to_the_end(
    services: Services,
    log: EventLog,
    monitor: MonitorWorker,
    catch_up: Callable[[Backlog], None],
    console: Console,
) -> None:
    """Read what the log holds now, and say how much that was."""
    backlog = Backlog.measure(log, MONITOR_GROUP, [services.config.monitor.topic])
    waiting = backlog.left(services.store)
    logger.info("%d records wait in %s", waiting, services.config.monitor.topic)
    catch_up(backlog)
    counts = monitor.loop.counts
    console.print(
        f"{waiting} records waited in {services.config.monitor.topic}; this worker read {counts['records']}:"
        f" {counts['events']} events counted, {counts['duplicates']} known before,"
        f" {counts['dead_letters']} dead letters",
        highlight=False,
        soft_wrap=True,
    )


def _wait_for_student(services: Services, stop: Stop, once: bool) -> None:
    """The deploy worker sets the student up. Raises `ConfigError` when none does within `SETUP_S` seconds."""
    for waited_s in range(SETUP_S):
        if _patiently(partial(services.rounds.route, services.student), stop, once) is not None:
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
    told = False
    while not stop.event.is_set():
        try:
            busy = step()
        except (StoreUnavailable, LogUnavailable) as exc:
            logger.warning("waiting: %s", exc)
            busy = False
        if not busy:
            if not told:
                logger.info("nothing to do now: waiting")
                told = True
            stop.event.wait(IDLE_S)


def promote_version(config: Config, root: Path, version: int, switch: Switch, console: Console) -> None:
    """Make a version the champion, without the gate. Raises `NothingThere` where no run has begun."""
    root = root.resolve()
    check_run(config, root)
    with open_services(config, root) as services:
        services.load(version)
        services.registry.promote(version)
        _route(services, version, switch, console)


def roll_back(config: Config, root: Path, switch: Switch, console: Console, to: int | None = None) -> None:
    """Make the previous champion, or version `to`, the champion again; a rollback that was interrupted is
    finished. Raises `ConfigError` when there is none, `NothingThere` where no run has begun."""
    root = root.resolve()
    check_run(config, root)
    with open_services(config, root) as services:
        registry, route = services.registry, services.rounds.route(services.student)
        champion = registry.champion().version
        served = route[0] if route else champion
        if to is not None:
            target: int | None = registry.version(to).version
        else:
            target = registry.alias("previous") if champion == served else champion
        if target is None:
            raise ConfigError(
                f"student {services.student!r} has no previous champion; "
                "`skillloop rounds list` shows what there is"
            )
        services.load(target)
        registry.rollback(served, to)
        _route(services, target, switch, console)


def _route(services: Services, version: int, switch: Switch, console: Console) -> None:
    lead_users(services, version)
    set_route(services, version, switch)
    try:
        with open_log(services.config, services.root, None) as log:
            OutboxRelay(services.store, log).step()
    except LogUnavailable as exc:
        logger.warning("announced later, by the next worker that sends: %s", exc)
    console.print(
        f"version {version} of {services.student!r} is champion and is served from now on", highlight=False
    )
