"""Attacks: two students that number their answers from 1, and a store from before ids had a source."""

from __future__ import annotations

import io
import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console

from agent.budget import Usage
from agent.profile import ALONE
from graphs.monitor.diagnose import OutputDiagnosis
from loop.cli.look import rebuild_profile
from loop.config import load
from loop.workers.diagnose import _costs
from streams import dead_letters
from streams.codec import encode
from streams.consume import ConsumeLoop, ConsumeSettings, Effects, Handler
from streams.events import Event, StudentOutput, derived_id
from streams.folding import fold_diagnoses
from streams.local_log import LocalLog
from streams.log import EventLog
from streams.memory_log import MemoryLog
from streams.state.compaction import compact
from streams.state.outbox import OutboxRelay
from streams.state.store import StateStore
from streams.testing.synthetic import START, diagnose, diagnosed, expected_buckets, output

TOPIC = "student-outputs"


def answers(student: str, count: int = 100) -> list[StudentOutput]:
    return [
        output(n).model_copy(update={"event_id": str(n), "student": student}) for n in range(1, count + 1)
    ]


def run(log: EventLog, store: StateStore, handler: Handler = diagnose, look_first: bool = True) -> None:
    consuming = ConsumeLoop(log, store, handler, ConsumeSettings("g", (TOPIC,), look_first=look_first))
    while consuming.step():
        pass
    OutboxRelay(store, log).step()
    consuming.close()


@pytest.fixture
def store(tmp_path: Path) -> StateStore:
    return StateStore(f"sqlite:///{tmp_path}/state.db")


@pytest.mark.parametrize("look_first", [True, False])
def test_two_students_that_number_from_one_lose_nothing(store: StateStore, look_first: bool) -> None:
    """100 of 200 answers were dropped as duplicates."""
    both = [event for pair in zip(answers("ann"), answers("bob"), strict=True) for event in pair]
    log = MemoryLog()
    log.append([encode(event) for event in both])
    run(log, store, look_first=look_first)
    log.append([encode(event) for event in both[:50]])  # again: dropped
    run(log, store, look_first=look_first)
    assert store.buckets() == expected_buckets(both)
    ids = {dict(record.headers)["ce_id"] for record in log.read("diagnoses")}
    assert len(ids) == 200


def test_one_students_failure_is_not_the_others(store: StateStore) -> None:
    def refuse_bob(events: object) -> Effects:
        good = [event for event in events if event.student != "bob"]  # type: ignore[attr-defined]
        failed = {event.identity: "no way" for event in events if event.student == "bob"}  # type: ignore[attr-defined]
        return diagnose(good) + Effects(failed=failed)

    log = MemoryLog()
    log.append([encode(event) for event in (*answers("ann", 5), *answers("bob", 5))])
    run(log, store, refuse_bob)
    assert store.buckets() == expected_buckets(answers("ann", 5))
    letters = list(dead_letters.read_all(log, TOPIC))
    assert len(letters) == 5 and all(b'"bob"' in letter.position.value for letter in letters)


def test_the_costs_of_both_are_booked() -> None:
    paid = OutputDiagnosis(event_id="1", verdict="correct", usage=Usage(calls=1))
    rows = _costs([(answers(name, 1)[0], paid) for name in ("ann", "bob")], START.date())
    assert len({row["entry_id"] for row in rows}) == 2


def before(path: Path, students: tuple[str, ...]) -> StateStore:
    """A store as the version before left it: ids 1 to 5 counted, without a source."""
    log, url = MemoryLog(), f"sqlite:///{path}/state.db"
    log.append([encode(event) for name in students for event in answers(name, 5)])
    store = StateStore(url)
    run(log, store)
    store.close()
    forget_sources(path)
    return StateStore(url)


def forget_sources(path: Path) -> None:
    with sqlite3.connect(path / "state.db", isolation_level=None) as database:
        database.execute("DROP TABLE seen_events")
        database.execute("DROP TABLE retention")
        database.execute("CREATE TABLE seen_events (event_id VARCHAR(200) PRIMARY KEY) WITHOUT ROWID")
        database.executemany("INSERT INTO seen_events VALUES (?)", [(str(n),) for n in range(1, 6)])
    database.close()


def test_a_store_of_one_student_is_converted_when_it_is_opened(tmp_path: Path) -> None:
    store = before(tmp_path, ("ann",))
    log = MemoryLog()
    log.append([encode(event) for event in (*answers("ann"), *answers("bob"))])
    with store.transaction() as connection:
        connection.exec_driver_sql("DELETE FROM topic_ids")
        connection.exec_driver_sql("DELETE FROM offsets")
    run(log, store)
    assert store.buckets() == expected_buckets([*answers("ann"), *answers("bob")])
    store.close()
    assert StateStore(store.url.render_as_string()).known([("ann", "1"), ("bob", "1"), ("cal", "1")]) == {
        ("ann", "1"),
        ("bob", "1"),
    }


@pytest.mark.parametrize("look_first", [True, False])
def test_in_a_store_of_several_students_an_old_id_may_be_anybodys(tmp_path: Path, look_first: bool) -> None:
    store = before(tmp_path, ("ann", "bob"))
    assert store.known([("ann", "1"), ("bob", "1"), ("ann", "6")]) == {("ann", "1"), ("bob", "1")}
    counted = store.buckets()
    log = MemoryLog()
    with store.transaction() as connection:
        connection.exec_driver_sql("DELETE FROM topic_ids")
        connection.exec_driver_sql("DELETE FROM offsets")
    log.append([encode(event) for event in (*answers("ann", 5), *answers("bob", 5))])
    run(log, store, look_first=look_first)
    assert store.buckets() == counted == expected_buckets([*answers("ann", 5), *answers("bob", 5)])


def rebuilt(folder: Path) -> bool:
    return rebuild_profile(load(None), folder, Console(file=io.StringIO()))


def test_a_profile_of_the_version_before_is_rebuilt_byte_for_byte(tmp_path: Path) -> None:
    """Its diagnoses are named after the answer's id alone, those of today after the student too."""

    def as_before(events: Sequence[Event]) -> Effects:
        effects = diagnose(events)
        named = [
            diagnosed(event).model_copy(update={"event_id": derived_id(event.event_id, "diagnose")})
            for event in events
            if isinstance(event, StudentOutput)
        ]
        return replace(effects, outbox=[encode(event) for event in named])

    with LocalLog(tmp_path / "log.db", instance="embedded") as log:
        log.append([encode(event) for event in answers("ann", 5)])
        run(log, StateStore(f"sqlite:///{tmp_path}/state.db"), as_before)
        forget_sources(tmp_path)
        store = StateStore(f"sqlite:///{tmp_path}/state.db")
        assert rebuilt(tmp_path)
        log.append([encode(event) for event in (*answers("ann", 9), *answers("bob", 9))])
        run(log, store)
    assert store.buckets() == expected_buckets([*answers("ann", 9), *answers("bob", 9)])
    assert rebuilt(tmp_path)
    compact(store, START.toordinal() + 1, 3600)
    assert rebuilt(tmp_path)


def test_what_others_write_to_the_diagnoses_does_not_end_a_rebuild(tmp_path: Path) -> None:
    """It raised for a missing skill that was not needed, and called the profile different for any other."""
    with LocalLog(tmp_path / "log.db", instance="embedded") as log:
        log.append([encode(event) for event in answers("ann", 5)])
        run(log, StateStore(f"sqlite:///{tmp_path}/state.db"))
        ours = diagnosed(answers("ann", 1)[0])
        foreign = [
            {"event_id": "theirs"},
            {"event_id": "theirs-2", "needed": (), "missing": ("add",)},
            {"causation_id": "77", "event_id": derived_id("3:ann/77", "diagnose"), "bucket": -(2**53)},
        ]
        log.append([encode(ours.model_copy(update=each)) for each in foreign])
    said = io.StringIO()
    assert rebuild_profile(load(None), tmp_path, Console(file=said, width=200))
    assert "8 diagnoses in the log, 3 of them not this loop's" in said.getvalue()


def test_a_profile_of_before_answers_to_one_skill_were_kept_apart_is_rebuilt(tmp_path: Path) -> None:
    def only_add(events: Sequence[Event], told: bool = True) -> Effects:
        misses = {"verdict": "incorrect", "judged": "incorrect", "needed": ("add",), "missing": ("add",)}
        found = [
            diagnosed(event).model_copy(update={**misses, "bucket": int(event.event_id) // 5})
            for event in events
            if isinstance(event, StudentOutput)
        ]
        rows = fold_diagnoses(found)
        known = {key: counts for key, counts in rows.items() if told or not key.skill.startswith(ALONE)}
        return replace(diagnose(events), buckets=known, outbox=[encode(event) for event in found])

    store = StateStore(f"sqlite:///{tmp_path}/state.db")
    with LocalLog(tmp_path / "log.db", instance="embedded") as log:
        log.append([encode(event) for event in answers("ann", 7)])
        run(log, store, partial(only_add, told=False))
        assert rebuilt(tmp_path)
        log.append([encode(event) for event in answers("ann", 20)[7:]])
        run(log, store, only_add)
        assert rebuilt(tmp_path)
        log.append([encode(event) for event in answers("ann", 21)[20:]])
        run(log, store, lambda events: replace(only_add(events), buckets={}))
    assert not rebuilt(tmp_path)
