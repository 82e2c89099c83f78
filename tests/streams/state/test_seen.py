"""Which events are remembered, and what compaction forgets: on SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa

from streams import dead_letters
from streams.codec import encode
from streams.consume import ConsumeLoop, ConsumeSettings
from streams.events import Deployed, StudentOutput
from streams.log import Partition
from streams.memory_log import MemoryLog
from streams.state import compaction
from streams.state.compaction import compact, first_bucket
from streams.state.outbox import OutboxRelay
from streams.state.rounds import RoundStore
from streams.state.seen import SeenEvent
from streams.state.store import Batch, DuplicateEvents, StateStore
from streams.testing.synthetic import BUCKET_S, diagnose, expected_buckets, output

TOPIC = "student-outputs"
DAY = datetime(2026, 1, 5, tzinfo=UTC).toordinal()


def batch(number: int, events: Sequence[SeenEvent]) -> Batch:
    at = Partition("t", 0)
    return Batch("g", {at: number}, {at: number + 1}, events)


def answers(count: int = 200) -> list[StudentOutput]:
    """About eight days of one student, whose first version was replaced."""
    same = {"student": "ann"}
    return [output(n, spacing_s=3600.0).model_copy(update=same) for n in range(count)]


def run(log: MemoryLog, store: StateStore) -> None:
    consuming = ConsumeLoop(log, store, diagnose, ConsumeSettings("g", (TOPIC,), max_records=50))
    while consuming.step():
        pass
    OutboxRelay(store, log).step()
    consuming.close()


def serve(store: StateStore, version: int) -> None:
    event = Deployed(
        event_id=f"d{version}",
        occurred_at=datetime(2026, 1, 1, tzinfo=UTC),
        student="ann",
        version=version,
        action="promote",
    )
    RoundStore(store, str).set_route("ann", version, None, event)  # type: ignore[type-var]


def test_an_id_is_known_of_its_own_source(store: StateStore) -> None:
    store.commit(batch(0, [SeenEvent("ann", "1", 5), SeenEvent("bob", "1", 6), SeenEvent("ann", '"2\\', 5)]))
    assert store.known([("ann", "1"), ("bob", "1"), ("cal", "1"), ("ann", '"2\\'), ("bob", '"2\\')]) == {
        ("ann", "1"),
        ("bob", "1"),
        ("ann", '"2\\'),
    }
    with pytest.raises(DuplicateEvents):
        store.commit(batch(1, [SeenEvent("cal", "1", 5), SeenEvent("bob", "1", 7)]))
    store.commit(batch(1, [SeenEvent("cal", "1", 5)]))


def test_ids_of_an_earlier_version_are_taken_over(store_url: str) -> None:
    engine = sa.create_engine(store_url)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE seen_events (event_id VARCHAR(200) PRIMARY KEY)")
        connection.exec_driver_sql("INSERT INTO seen_events VALUES ('1'), ('2')")
    engine.dispose()
    for _ in range(2):
        store = StateStore(store_url)
        assert store.known([("ann", "1"), ("bob", "2"), ("ann", "3")]) == {("ann", "1"), ("bob", "2")}
        store.close()
    store = StateStore(store_url)
    with pytest.raises(DuplicateEvents, match="earlier version"):
        store.commit(batch(0, [SeenEvent("ann", "2", 5)]))
    store.close()


def test_an_event_from_before_a_compaction_never_counts_twice(store: StateStore) -> None:
    log, events = MemoryLog(), answers()
    log.append([encode(event) for event in events])
    run(log, store)
    serve(store, 1)
    old = [event for event in events if event.occurred_at.toordinal() < DAY]
    told = compact(store, DAY, BUCKET_S, dry_run=True)
    assert (told.events, store.known_from()) == (len(old), None)
    assert store.known([event.identity for event in events]) == {event.identity for event in events}
    done = compact(store, DAY, BUCKET_S, piece=7)  # many pieces
    assert done == told and done.buckets > 0
    assert store.known([event.identity for event in events]) == {
        event.identity for event in events if event not in old
    }
    counted = store.buckets()
    assert all(counted[key] == counts for key, counts in store.buckets().items())
    log.append([encode(event) for event in events])
    run(log, store)
    assert store.buckets() == counted
    letters = list(dead_letters.read_all(log, TOPIC))
    assert len(letters) == len(old) and {letter.reason for letter in letters} == {"expired"}
    assert compact(store, DAY - 2, BUCKET_S) == compaction.Compaction(DAY, 0, 0)  # never back


def test_buckets_of_the_served_versions_stay(store: StateStore) -> None:
    log, events = MemoryLog(), answers()
    log.append([encode(event) for event in events])
    run(log, store)
    assert compact(store, DAY, BUCKET_S).buckets == 0  # no route: nothing is known of what is served
    serve(store, 2)
    compact(store, DAY, BUCKET_S)
    since, whole = first_bucket(DAY, BUCKET_S), expected_buckets(events)
    assert store.buckets() == {
        key: counts for key, counts in whole.items() if key.version == 2 or key.bucket >= since
    }
    serve(store, 3)
    assert compact(store, DAY, BUCKET_S).buckets == 0  # 2 is the version before
    serve(store, 4)
    compact(store, DAY, BUCKET_S)
    assert store.buckets() == {key: counts for key, counts in whole.items() if key.bucket >= since}


def test_a_batch_that_meets_a_compaction_looks_again(store: StateStore) -> None:
    log, events = MemoryLog(), answers(60)
    log.append([encode(event) for event in events])
    consuming = ConsumeLoop(log, store, diagnose, ConsumeSettings("g", (TOPIC,), max_records=5))
    consuming.step()
    compact(store, DAY, BUCKET_S)
    while consuming.step() or consuming.counts["fenced"] < 1:
        pass
    while consuming.step():
        pass
    OutboxRelay(store, log).step()
    letters = list(dead_letters.read_all(log, TOPIC))
    assert len(letters) == 55
    assert consuming.counts["fenced"] == 1


def test_what_is_announced_once_is_remembered_indefinitely(store: StateStore) -> None:
    event = Deployed(
        event_id="d1",
        occurred_at=datetime(2020, 1, 1, tzinfo=UTC),
        student="ann",
        version=1,
        action="promote",
    )
    assert store.publish_once(event)
    compact(store, DAY, BUCKET_S)
    assert not store.publish_once(event)
