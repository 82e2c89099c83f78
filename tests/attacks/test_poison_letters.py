"""Attacks: a record whose dead letter no topic takes, and letters that breed when they are redriven."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from streams import dead_letters
from streams.clock import HandClock
from streams.codec import encode
from streams.consume import ConsumeLoop, ConsumeSettings, Effects
from streams.dead_letters import ORIGIN
from streams.log import LogUnavailable, Outgoing, Partition, Record
from streams.memory_log import MemoryLog
from streams.state.outbox import OutboxRelay
from streams.state.redrives import refusals, send_again
from streams.state.store import StateStore
from streams.testing.synthetic import diagnose, output
from streams.topics import MAX_LETTER_BYTES, TOPICS

TOPIC = "student-outputs"
LIMIT = {spec.name: spec.max_bytes for spec in TOPICS}


@pytest.fixture
def store(tmp_path: Path) -> StateStore:
    return StateStore(f"sqlite:///{tmp_path}/state.db")


def consume(log: MemoryLog, store: StateStore, failing: bool = False) -> None:
    def handler(events: object) -> Effects:
        if failing:
            return Effects(failed={event.identity: "no way" for event in events})  # type: ignore[attr-defined]
        return diagnose(events)  # type: ignore[arg-type]

    loop = ConsumeLoop(log, store, handler, ConsumeSettings("g", (TOPIC,)))
    while loop.step():
        pass
    OutboxRelay(store, log).step()
    loop.close()


@pytest.mark.parametrize(
    "record",
    [
        Record(Partition(TOPIC, 0), 7, b"k", b"v" * 7 * 2**20, (("h", b"x" * 8 * 2**20),)),
        Record(Partition(TOPIC, 0), 7, b"k" * 8 * 2**20, b"v" * 7 * 2**20),
        Record(Partition(TOPIC, 0), 7, None, b"v", tuple(("h", b"") for _ in range(1_000_000))),
        Record(Partition(TOPIC, 0), 7, None, b"v" * 15 * 2**20, (("ü" * 1000, b"x" * 900_000),) * 3),
    ],
)
def test_every_letter_fits_into_its_topic(record: Record) -> None:
    letter = dead_letters.dead_letter(record, "why", "message" * 9999, 1)
    headers = sum(len(name.encode()) + len(value) for name, value in letter.headers)
    assert len(letter.key or b"") + len(letter.value) + headers < MAX_LETTER_BYTES + 2 * 2**20 < LIMIT[TOPIC]
    parsed = dead_letters.parse(
        Record(Partition(letter.topic, 0), 0, letter.key, letter.value, letter.headers)
    )
    assert parsed.letter_id == f"{TOPIC}/0/7"
    assert parsed.cut_from == len(record.value)


def test_one_row_that_the_log_refuses_stops_nothing_else(store: StateStore) -> None:
    log = MemoryLog()
    rows = [encode(output(n)) for n in range(5)]
    rows.insert(2, Outgoing("alerts", None, b"x" * (LIMIT["alerts"] + 1)))
    with store.transaction() as connection:
        store.publish(rows, connection)
    OutboxRelay(store, log).step()
    assert sum(log.end_offsets(TOPIC).values()) == 5
    assert store.pending(10) == []
    ((topic, error),) = refusals(store)
    assert topic == "alerts"
    assert "bytes" in error


def test_six_redrives_of_four_failing_letters_leave_four(store: StateStore) -> None:
    log = MemoryLog()
    log.append([encode(output(n)) for n in range(4)])
    consume(log, store, failing=True)
    names = set(dead_letters.latest(log, TOPIC))
    for force in (False, False, False, True, True, True):
        letters = dead_letters.latest(log, TOPIC)
        send_again(store, {name: dead_letters.redrive(letter) for name, letter in letters.items()}, force)
        OutboxRelay(store, log).step()
        consume(log, store, failing=True)
        assert set(dead_letters.latest(log, TOPIC)) == names
    assert sum(log.end_offsets(TOPIC).values()) == 4 + 4 + 3 * 4  # once unasked, then as often as forced
    consume(log, store)
    letters = dead_letters.latest(log, TOPIC)
    send_again(store, {name: dead_letters.redrive(letter) for name, letter in letters.items()}, force=True)
    OutboxRelay(store, log).step()
    consume(log, store)
    assert sum(counts[0] for key, counts in store.buckets().items() if key[2] == "*") == 4


def test_a_letter_goes_back_to_its_own_topic_whatever_its_headers_say() -> None:
    headers = (("dlq_topic", b"deployments"), ("dlq_offset", b"3"), ("h", b"x"))
    letter = dead_letters.parse(Record(Partition(f"{TOPIC}.dlq", 0), 0, b"k", b"v", headers))
    record = dead_letters.redrive(letter)
    assert record.topic == TOPIC
    assert dict(record.headers) == {"h": b"x", ORIGIN: b"deployments/-1/3"}


def test_an_outbox_id_that_is_not_text_is_looked_over(store: StateStore) -> None:
    log = MemoryLog()
    clock = store.clock = HandClock(datetime(2026, 1, 1, tzinfo=UTC))
    relay = OutboxRelay(store, log, clock=clock)
    with store.transaction() as connection:
        store.publish([encode(output(1))], connection)
    log.unavailable = 1  # the append fails, so its row is looked for in the topic when its claim has run out
    with pytest.raises(LogUnavailable):
        relay.step()
    log.append([Outgoing(TOPIC, None, b"v", ((dead_letters.OUTBOX_ID, b"\xff\xfe"),))])
    clock.sleep(60)
    assert relay.step() == 1
    assert sum(log.end_offsets(TOPIC).values()) == 2
