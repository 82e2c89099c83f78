"""The state store on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import multiprocessing
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streams.clock import HandClock
from streams.log import Outgoing, Partition
from streams.state.alone import alone
from streams.state.claims import Claim, OutboxClaims
from streams.state.reading import reading
from streams.state.seen import SeenEvent
from streams.state.store import (
    Batch,
    DuplicateEvents,
    NothingStored,
    StaleOffsets,
    StateStore,
    StoreError,
    StoreRefused,
    StoreUnavailable,
)

P0, P1 = Partition("t", 0), Partition("t", 1)
LETTER = Outgoing("t.dlq", b"k\x00", b"\x00\xff", (("h", b"\x00"), ("h", b"")))


def ids(*names: str) -> list[SeenEvent]:
    return [SeenEvent("s", name, 1) for name in names]


def batch(expected: int = 0, to: int = 1, **more: Any) -> Batch:
    return Batch(group="g", expected={P0: expected}, offsets={P0: to}, **more)


def test_a_batch_is_written_as_a_whole(store: StateStore) -> None:
    store.commit(
        batch(
            events=ids("a", "b"),
            buckets={("s", 1, "add", 7): (2, 1)},
            watermarks={("s", 1): (2, 50.0)},
            outbox=[LETTER],
            ledger=[
                {"entry_id": "x", "student": "s", "day": "2026-01-01", "activity": "teach", "entry": "{}"}
            ],
        )
    )
    store.commit(
        batch(
            1,
            2,
            buckets={("s", 1, "add", 7): (1, 1), ("s", 1, "*", 7): (1, 0)},
            watermarks={("s", 1): (1, 40.0)},
        )
    )
    assert store.offsets("g") == {P0: 2}
    assert store.offsets("other") == {}
    assert store.known([("s", name) for name in "abc"]) == {("s", "a"), ("s", "b")}
    assert store.buckets() == {("s", 1, "add", 7): (3, 2), ("s", 1, "*", 7): (1, 0)}
    assert store.buckets("nobody") == {}
    assert store.watermarks("s").get(1) == (3, 50.0)
    assert [record for _, record in store.pending(10)] == [LETTER]


def test_offsets_are_compared_before_they_are_set(store: StateStore) -> None:
    store.commit(batch(0, 5))
    for expected in (0, 4, 6):
        with pytest.raises(StaleOffsets):
            store.commit(
                batch(expected, 9, events=ids("late"), buckets={("s", 1, "add", 1): (1, 0)}, outbox=[LETTER])
            )
    assert store.offsets("g") == {P0: 5}
    assert (store.known([("s", "late")]), store.buckets(), store.pending(1)) == (set(), {}, [])


def test_one_stale_partition_stops_the_whole_batch(store: StateStore) -> None:
    store.commit(batch(0, 5))
    with pytest.raises(StaleOffsets):
        store.commit(Batch(group="g", expected={P0: 4, P1: 0}, offsets={P0: 6, P1: 3}))
    assert store.offsets("g") == {P0: 5}


def test_a_known_event_stops_the_whole_batch(store: StateStore) -> None:
    store.commit(batch(0, 1, events=ids("a")))
    with pytest.raises(DuplicateEvents):
        store.commit(batch(1, 2, events=ids("b", "a"), buckets={("s", 1, "add", 1): (1, 0)}))
    assert (store.offsets("g"), store.known([("s", "b")]), store.buckets()) == ({P0: 1}, set(), {})


@pytest.mark.parametrize(
    "refused",
    [
        {"events": [SeenEvent("s", "\ud800", 1)]},
        {"buckets": {("s", 1, "add", 2**70): (1, 0)}},
        {"buckets": {("s", 1, "\ud800", 1): (1, 0)}},
        {"ledger": [{"entry_id": "x", "student": None, "day": "d", "activity": "a", "entry": "{}"}]},
    ],
)
def test_values_that_can_never_be_stored_are_refused_and_not_retried(
    store: StateStore, refused: dict[str, Any]
) -> None:
    with pytest.raises(StoreRefused):
        store.commit(batch(0, 1, **refused))
    assert store.offsets("g") == {}


@pytest.mark.postgres
def test_postgres_refuses_nul_in_text_for_good(new_postgres: Callable[[], str]) -> None:
    store = StateStore(new_postgres())
    with pytest.raises(StoreRefused, match="NUL"):
        store.commit(batch(0, 1, events=ids("a\x00b")))
    store.close()


def test_a_store_that_cannot_be_reached_names_itself_without_its_password() -> None:
    with pytest.raises(StoreUnavailable, match=r"store\.url") as caught:
        StateStore("postgresql+psycopg://user:secret@localhost:1/nothing?connect_timeout=2")
    assert "secret" not in str(caught.value)
    assert "localhost:1" in str(caught.value)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable, match="file"):
        StateStore(f"sqlite:///{tmp_path}/file/state.db")


def test_a_full_disk_is_a_clear_error_and_loses_nothing(tmp_path: Path) -> None:
    store = StateStore(f"sqlite:///{tmp_path}/state.db")
    store.commit(batch(0, 1, events=ids("a")))
    with store.engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages + 2}")
    big = batch(1, 2, events=ids(*(f"{n:0>100}" for n in range(5000))))
    with pytest.raises(StoreUnavailable, match=r"full.*nothing was written"):
        store.commit(big)
    assert store.offsets("g") == {P0: 1}
    with store.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1000000")
    store.commit(big)
    assert store.offsets("g") == {P0: 2}
    store.close()


def test_a_locked_database_is_unavailable_for_now(tmp_path: Path) -> None:
    store = StateStore(f"sqlite:///{tmp_path}/state.db?timeout=0.1")
    other = sqlite3.connect(tmp_path / "state.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match="locked"):
        store.commit(batch())
    other.execute("ROLLBACK")
    other.close()
    store.commit(batch())
    store.close()


def test_claims_of_two_relays_never_overlap(store: StateStore) -> None:
    store.commit(batch(0, 1, outbox=[Outgoing("t", b"k", str(n).encode()) for n in range(20)]))
    clock = store.clock = HandClock(datetime(2026, 1, 1, tzinfo=UTC))
    taken: list[int] = []
    rows_of = OutboxClaims(store)
    together = threading.Barrier(4)

    def relay(name: str) -> None:
        together.wait()
        while rows := rows_of.claim(Claim(name, 30.0), {"t": "[]"}, 3):
            taken.extend(row.row_id for row in rows)

    threads = [threading.Thread(target=relay, args=(f"relay-{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == len(set(taken)) == 20
    assert rows_of.unclaimed_topics(10) == []
    clock.sleep(29)
    assert rows_of.reclaim(Claim("late", 30.0), 50) == []
    clock.sleep(2)
    assert len(rows_of.reclaim(Claim("late", 30.0), 50)) == 20
    clock.sleep(-3600)  # of the database's server
    assert len(rows_of.reclaim(Claim("later", 30.0), 50)) == 20


def _open(url: str, barrier: Any) -> None:
    barrier.wait()
    StateStore(url).close()


def test_several_processes_may_open_a_new_store_at_once(store_url: str) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    processes = [context.Process(target=_open, args=(store_url, barrier)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]


def test_alone_is_one_at_a_time_and_holds_up_no_other_work(store: StateStore, store_url: str) -> None:
    inside, most, together = 0, 0, threading.Barrier(3)

    def set_up() -> None:
        nonlocal inside, most
        own = StateStore(store_url)
        together.wait()
        with alone(own):
            inside, most = inside + 1, max(most, inside + 1)
            store.commit(Batch("g", {}, {}, ids(threading.current_thread().name)))
            time.sleep(0.05)
            inside -= 1
        own.close()

    threads = [threading.Thread(target=set_up, name=f"w{number}") for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1 and len(store.known([("s", f"w{number}") for number in range(3)])) == 3


def test_concurrent_batches_add_up(store: StateStore) -> None:
    together = threading.Barrier(4)

    def consume(number: int) -> None:
        together.wait()
        for step in range(15):
            keys = [("s", 1, skill, n) for skill in ("add", "sub") for n in range(10)]
            at = Partition("t", number)
            store.commit(
                Batch("g", {at: step}, {at: step + 1}, ids(f"{number}-{step}"), dict.fromkeys(keys, (1, 1)))
            )

    threads = [threading.Thread(target=consume, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(store.buckets().values()) == {(60, 60)}
    assert set(store.offsets("g").values()) == {15}


Rows = Sequence[tuple[str, int]]


@given(
    batches=st.lists(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 1)), max_size=5), max_size=6)
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_batching_gives_the_same_sums(
    new_store: Callable[[], StateStore], batches: Sequence[Rows]
) -> None:
    store = new_store()
    for number, rows in enumerate(batches):
        counts: dict[Any, tuple[int, int]] = {}
        for skill, missing in rows:
            needed, missed = counts.get(("s", 1, skill, 0), (0, 0))
            counts[("s", 1, skill, 0)] = (needed + 1, missed + missing)
        store.commit(batch(number, number + 1, buckets=counts))
    every = [row for rows in batches for row in rows]
    expected = {
        ("s", 1, s, 0): (sum(x == s for x, _ in every), sum(m for x, m in every if x == s)) for s, _ in every
    }
    assert store.buckets() == expected
    store.close()


@pytest.fixture
def new_store(tmp_path: Path) -> Callable[[], StateStore]:
    numbers = iter(range(10_000))
    return lambda: StateStore(f"sqlite:///{tmp_path}/{next(numbers)}.db")


@pytest.mark.parametrize(
    "url", ["nonsense:SECRET@", "postgresql://u:SEC/RET@h/x", "mysql://u:SECRET@h/x", "x://SECRET"]
)
def test_an_address_that_is_not_understood_is_not_shown(url: str) -> None:
    with pytest.raises(StoreError, match=r"store\.url") as caught:
        StateStore(url)
    assert "SEC" not in str(caught.value)


def test_a_store_that_is_only_looked_at_is_not_made(store_url: str) -> None:
    for _ in range(2):
        with pytest.raises(NothingStored):
            StateStore(store_url, create=False)
    StateStore(store_url).close()
    StateStore(store_url, create=False).close()


def test_reads_share_a_transaction_and_writes_do_not(store: StateStore) -> None:
    begun: list[object] = []
    sa.event.listen(store.engine, "begin", begun.append)
    with reading(store):
        assert store.offsets("g") == {} and store.known([("s", "a")]) == set()
        with reading(store):
            store.watermarks("s")
        store.commit(batch(events=ids("a")))
        store.watermarks("s")
    assert len(begun) == 2
    assert store.known([("s", "a")]) == {("s", "a")} and len(begun) == 3
