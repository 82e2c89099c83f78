"""What all round workers share: leases, failures that back off, and workers that were frozen."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from agent.budget import BudgetExceeded, UnpricedModel
from agent.catalog import SkillCatalog
from agent.decision import Decision, SkillTarget
from graphs.teacher import TeacherMisconfigured, TeacherUnavailable
from graphs.testing.scripted import ScriptedTeacher
from loop.config import load
from loop.tasks.task import Task
from loop.workers.decide import changed, round_record
from loop.workers.lease import Lease
from loop.workers.messages import Advanced, Message, Postponed
from loop.workers.record import LoopRound, Opened, RoundParts, Trained, parse_record
from loop.workers.round import RoundWorker
from loop.workers.services import Services
from serving.scripted_engine import ScriptedEngine
from streams.clock import HandClock
from streams.crash import Crashed, no_crash
from streams.events import RoundChanged
from streams.state.rounds import Round, RoundConflict, RoundStore
from streams.state.store import StateStore
from training.errors import DatasetError, TrainingError
from training.testing.folder_registry import FakeRun, FolderRegistry

NOW = datetime(2026, 1, 1, tzinfo=UTC)
TRAINED = Trained(adapter_sha256="a", tokens=1, loss=0.5, parent=1)
Work = Callable[[RoundWorker, LoopRound, Lease], None]


class Worker(RoundWorker):
    """A train worker whose work is a function."""

    STATE = "planned"

    def __init__(self, services: Services, work: Work, lease_s: float | None = 60.0) -> None:
        super().__init__(services, lease_s)
        self._work = work

    def work(self, round_: LoopRound, lease: Lease) -> None:
        self._work(self, round_, lease)


def succeed(worker: RoundWorker, round_: LoopRound, lease: Lease) -> None:
    worker.advance(round_, "trained", TRAINED)


def failing(error: BaseException) -> Work:
    def work(worker: RoundWorker, round_: LoopRound, lease: Lease) -> None:
        raise error

    return work


class Room:
    """A store with one planned round, and services for any number of workers on it."""

    def __init__(self, folder: Path) -> None:
        self.clock, self.told, self.folder = HandClock(NOW), [], folder
        self.store = StateStore(f"sqlite:///{folder / 'state.db'}")
        self.rounds = RoundStore(self.store, parse_record, self.clock)
        target = SkillTarget(skill="add", weight=1.0, examples=2, strategy="select")
        decision = Decision(kind="select", skills=(target,), examples=2, steps=1, reasons=("test",))
        record = RoundParts(decision=decision, opened=Opened(champion=1, at=NOW, answers=0))
        round_ = Round("demo-r001", "demo", 1, "planned", None, record)
        assert self.rounds.open(round_, changed(round_, "planned", {}))

    told: list[Message]

    def services(self, owner: str) -> Services:
        teacher = ScriptedTeacher(labels={}, diagnoses=lambda *_: None)  # type: ignore[arg-type, return-value]
        task = Task(SkillCatalog.of(("add", "adds")), (), (), lambda *_: True, teacher, Path("base"))
        absent: Any = None
        return Services(
            config=load(None),
            root=self.folder,
            store=self.store,
            rounds=self.rounds,
            task=task,
            engine=ScriptedEngine(lambda *_: "answer"),
            registry=absent,
            trainer=None,  # type: ignore[arg-type]
            clock=self.clock,
            crash=no_crash,
            owner=owner,
            listen=self.told.append,
        )

    def wait_for_renewal(self) -> None:
        deadline, now = time.monotonic() + 10, self.clock.now().timestamp()
        while time.monotonic() < deadline:
            with self.store.transaction(read_only=True) as connection:
                if connection.execute(sa.text("SELECT lease_until FROM rounds")).scalar_one() > now + 0.35:
                    return
            time.sleep(0.01)
        pytest.fail("the lease was not renewed")

    def round(self) -> LoopRound:
        round_ = self.rounds.get("demo-r001")
        assert round_ is not None
        return round_


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path)


def test_a_round_that_fails_backs_off_and_ends_with_what_a_person_must_do(room: Room) -> None:
    worker = Worker(room.services("a"), failing(TrainingError("the device ran out of memory")))
    waited = []
    for _ in range(2):
        assert not worker.step() and not worker.step(), "it waits"
        postponed = room.told[-1]
        assert isinstance(postponed, Postponed) and room.round().state == "planned"
        room.clock.sleep(postponed.wait_s - 0.5)
        assert not worker.step()
        room.clock.sleep(1)
        waited.append(postponed.wait_s)
    assert waited == [5.0, 30.0] and room.round().failures == 2
    assert worker.step()
    ended = room.round().record.ended
    assert room.round().state == "failed" and ended is not None
    for said in (
        "3 failures",
        "TrainingError: the device ran out of memory",
        "A person must",
        str(room.folder),
    ):
        assert said in ended.error
    assert isinstance(room.told[-1], Advanced) and len(room.told) == 3
    assert round_record(room.round()).error == ended.error
    assert not worker.step()


def test_another_worker_takes_up_what_one_failed_at(room: Room) -> None:
    Worker(room.services("a"), failing(OSError("disk full"))).step()
    room.clock.sleep(6)
    assert Worker(room.services("b"), succeed).step()
    assert (room.round().state, room.round().failures) == ("trained", 0)


@pytest.mark.parametrize("error", [DatasetError("empty"), BudgetExceeded("usd_per_round", 1.0, 0.9, 0.2)])
def test_what_cannot_be_mended_by_waiting_ends_at_once(room: Room, error: Exception) -> None:
    assert Worker(room.services("a"), failing(error)).step()
    ended = room.round().record.ended
    assert room.round().state == "failed" and ended is not None
    assert ended.error == f"{type(error).__name__}: {error}"


BLAMELESS = (
    TeacherUnavailable("away"),
    TeacherMisconfigured("401: the key is wrong"),
    UnpricedModel("no price"),
    BudgetExceeded("usd_per_day", 1.0, 0.9, 0.2),
)


@pytest.mark.parametrize("error", BLAMELESS, ids=lambda error: type(error).__name__)
def test_what_is_not_the_round_s_fault_is_waited_for(room: Room, error: Exception) -> None:
    worker = Worker(room.services("a"), failing(error))
    for failures in range(1, 11):
        assert not worker.step() and worker.failures == failures
        assert not worker.step() and worker.failures == failures, "it waits before it asks again"
        room.clock.sleep(61)
    assert (room.round().state, room.round().failures) == ("planned", 0)


def test_an_interrupted_worker_leaves_no_lease(room: Room) -> None:
    with pytest.raises(Crashed):
        Worker(room.services("a"), failing(Crashed("Ctrl-C"))).step()
    room.clock.sleep(0.1)
    assert Worker(room.services("b"), succeed).step()


@pytest.mark.parametrize("late", [succeed, failing(OSError("late")), failing(DatasetError("late"))])
def test_a_frozen_worker_cannot_change_its_successor_s_round(room: Room, late: Work) -> None:
    second = Worker(room.services("b"), succeed)

    def frozen(worker: RoundWorker, round_: LoopRound, lease: Lease) -> None:
        room.clock.sleep(61)
        assert second.step()
        late(worker, round_, lease)

    first = Worker(room.services("a"), frozen)
    first.step()
    assert room.round().state == "trained" and room.round().failures == 0
    announced = [record for _, record in room.store.pending(10) if record.topic == RoundChanged.TOPIC]
    assert len(announced) == 2 and [type(message) for message in room.told] == [Advanced]


def test_a_checkpoint_after_the_lease_was_lost_stops_the_work(room: Room) -> None:
    """With a lease of a tenth of a second, the thread notices before the work does."""
    reached = []

    def work(worker: RoundWorker, round_: LoopRound, lease: Lease) -> None:
        room.clock.sleep(61)
        assert Worker(room.services("b"), succeed).step()
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            lease.check()
            time.sleep(0.01)
        reached.append("end")

    Worker(room.services("a"), work, lease_s=0.1).step()
    assert not reached and room.round().state == "trained"


def test_the_lease_is_a_setting(room: Room) -> None:
    """After `rounds.lease_s` without a sign of life another worker has the round."""
    config = load(None, {"SKILLLOOP_ROUNDS__LEASE_S": "300"})

    def work(worker: RoundWorker, round_: LoopRound, lease: Lease) -> None:
        room.clock.sleep(299)
        assert not Worker(room.services("b"), succeed).step()
        room.clock.sleep(2)
        assert Worker(room.services("b"), succeed).step()

    Worker(replace(room.services("a"), config=config), work, lease_s=None).step()
    assert room.round().state == "trained"


def test_a_process_that_wakes_checks_by_itself(room: Room) -> None:
    """As after SIGSTOP and SIGCONT: the thread that renews has not run yet."""
    claimed = room.rounds.claim("planned", "a", 0.2)
    assert claimed is not None
    lease = Lease(room.rounds, claimed, 0.2)  # not entered
    lease.check()
    room.clock.sleep(1)
    assert room.rounds.claim("planned", "b", 60.0) is not None
    time.sleep(0.15)
    with pytest.raises(RoundConflict):
        lease.check()


@pytest.mark.parametrize("lost", [False, True])
def test_of_two_runs_begun_at_once_one_is_left(room: Room, lost: bool, tmp_path: Path) -> None:
    """Two workers looked for the round's run before either had begun one; one of them has lost its lease."""

    class Slow(FolderRegistry):
        """Between looking for the run and creating it the other worker does both."""

        def start_run(self, round_id: str, run_id: str | None = None) -> str:
            if run_id is None and not self.runs:
                self.runs["theirs"] = FakeRun(round_id)
                theirs = room.rounds.claim("planned", "b", 60.0) if lost else room.rounds.get(round_id)
                assert theirs is not None
                room.rounds.bind_run(theirs, "theirs")
            return super().start_run(round_id, run_id)

    registry, bound = Slow(tmp_path / "registry"), list[str]()

    def work(worker: RoundWorker, round_: LoopRound, lease: Lease) -> None:
        if lost:
            room.clock.sleep(100)
        bound.append(worker.run_of(round_))

    Worker(replace(room.services("a"), registry=registry), work).step()
    assert registry.runs.keys() == {"theirs"}
    assert bound == ([] if lost else ["theirs"])


def test_a_run_of_a_worker_that_lost_its_lease_before_any_was_bound_goes_too(
    room: Room, tmp_path: Path
) -> None:
    """The campaign's seed 162: the first worker's run was begun, its successor's not bound yet."""

    class Both(FolderRegistry):
        """Neither finds the other's run."""

        def start_run(self, round_id: str, run_id: str | None = None) -> str:
            self.runs[f"run {len(self.runs)}"] = FakeRun(round_id)
            return f"run {len(self.runs) - 1}"

    registry, bound = Both(tmp_path / "registry"), list[str]()
    second = Worker(replace(room.services("b"), registry=registry), lambda w, r, _: bound.append(w.run_of(r)))

    def work(worker: RoundWorker, round_: LoopRound, lease: Lease) -> None:
        room.clock.sleep(100)
        theirs = room.rounds.claim("planned", "b", 60.0)
        try:
            worker.run_of(round_)
        finally:
            assert theirs is not None and registry.runs.keys() == {"run 0"}
            bound.append(second.run_of(theirs))

    Worker(replace(room.services("a"), registry=registry), work).step()
    assert bound == ["run 1"] and registry.runs.keys() == {"run 1"}


def test_long_work_keeps_its_lease(room: Room) -> None:
    """The work never asks; the thread renews beside it."""
    at_work, done = threading.Event(), threading.Event()

    def work(worker: RoundWorker, round_: LoopRound, lease: Lease) -> None:
        at_work.set()
        assert done.wait(10)
        worker.advance(round_, "trained", TRAINED)

    worker = Worker(room.services("a"), work, lease_s=0.4)
    thread = threading.Thread(target=worker.step)
    thread.start()
    assert at_work.wait(10)
    other = Worker(room.services("b"), succeed)
    for _ in range(3):
        room.clock.sleep(0.3)  # of 0.4: without a renewal the second sleep would end the lease
        room.wait_for_renewal()
        assert not other.step()
    done.set()
    thread.join()
    assert room.round().state == "trained"
