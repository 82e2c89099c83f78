"""The consume loop: crash points, duplicates, poison, transient failures, fencing. Fake log, real
databases."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from streams import dead_letters
from streams.clock import HandClock
from streams.codec import encode
from streams.consume import ConsumeLoop, ConsumeSettings, Effects, calm_collector
from streams.crash import Crashed, Raise
from streams.events import Event, StudentOutput
from streams.log import LogError, Outgoing, Partition
from streams.memory_log import MemoryLog
from streams.state.outbox import OutboxRelay, RelaySettings
from streams.state.store import StateStore, StoreUnavailable
from streams.testing.synthetic import POISON, diagnose, expected_buckets, output, poison, traffic
from streams.topics import MAX_LETTER_BYTES

TOPIC = StudentOutput.TOPIC
SETTINGS = ConsumeSettings(group="monitor", topics=(TOPIC,), max_records=50)


class TeacherAway(Exception):
    """Stands for a 503."""


def loop(
    log: MemoryLog,
    store: StateStore,
    handler: Any = diagnose,
    settings: ConsumeSettings = SETTINGS,
    **ports: Any,
) -> ConsumeLoop:
    return ConsumeLoop(log, store, handler, settings, **ports)


def run(consuming: ConsumeLoop, idle: int = 2) -> int:
    """Step until nothing comes `idle` times in a row."""
    total, quiet = 0, 0
    while quiet < idle:
        done = consuming.step()
        total += done
        quiet = 0 if done else quiet + 1
    return total


def letters(log: MemoryLog, topic: str = TOPIC) -> list[dead_letters.DeadLetter]:
    return list(dead_letters.read_all(log, topic))


def send(log: MemoryLog, *events: Event) -> None:
    log.append([encode(event) for event in events])


def test_each_event_counts_once_and_each_poison_record_is_one_dead_letter(
    memory_log: MemoryLog, store: StateStore
) -> None:
    sent = traffic(seed=1, events=300)
    memory_log.append(sent.records)
    consuming = loop(memory_log, store)
    assert run(consuming) == len(sent.records)
    OutboxRelay(store, memory_log).step()
    assert store.buckets() == expected_buckets(sent.events)
    found = letters(memory_log)
    assert len(found) == len({letter.letter_id for letter in found}) == sent.poisoned
    assert {letter.reason for letter in found} <= {*POISON, "failed"}
    assert consuming.counts["dead_letters"] == sent.poisoned
    assert consuming.counts["events"] == 300
    assert sum(memory_log.end_offsets("diagnoses").values()) == 300
    assert sum(memory_log.commits["monitor"].values()) == len(sent.records)


def test_a_loop_that_does_not_look_first_counts_each_event_once_too(
    memory_log: MemoryLog, store: StateStore
) -> None:
    sent = traffic(seed=2, events=300)
    memory_log.append(sent.records)
    consuming = loop(memory_log, store, settings=replace(SETTINGS, look_first=False))
    assert run(consuming, idle=4) == len(sent.records)
    assert store.buckets() == expected_buckets(sent.events)
    assert consuming.counts["fenced"] > 0, "the traffic repeats events of earlier batches"


def test_a_process_that_switched_the_collector_off_has_it_run_between_batches_and_seldom(
    memory_log: MemoryLog, store: StateStore
) -> None:
    class Cycle:
        def __init__(self) -> None:
            self.itself = self

    left = []

    def handler(events: Sequence[Event]) -> Effects:
        left.append(weakref.ref(Cycle()))
        return diagnose(events)

    consuming = loop(memory_log, store, handler, replace(SETTINGS, collect_every_s=3600.0))
    calm_collector()
    try:
        for number in range(2):
            send(memory_log, output(number))
            assert run(consuming) == 1
        assert [reference() is None for reference in left] == [True, False]
        consuming.settings = replace(SETTINGS, collect_every_s=0.0)
        send(memory_log, output(2))
        assert run(consuming) == 1
        assert [reference() is None for reference in left] == [True, True, True]
    finally:
        gc.enable()
        gc.unfreeze()


@pytest.mark.parametrize("point", ["consume.after-poll", "consume.before-commit", "consume.after-commit"])
@pytest.mark.parametrize("batch", [1, 2, 4])
def test_a_crash_at_any_point_loses_and_repeats_nothing(
    memory_log: MemoryLog, store: StateStore, point: str, batch: int
) -> None:
    sent = traffic(seed=2, events=200)
    memory_log.append(sent.records)
    with pytest.raises(Crashed):
        run(loop(memory_log, store, crash=Raise(point, batch)))
    memory_log.members.clear()  # what a dead process leaves of its membership
    run(loop(memory_log, store))
    OutboxRelay(store, memory_log).step()
    assert store.buckets() == expected_buckets(sent.events)
    assert len(letters(memory_log)) == sent.poisoned


@pytest.mark.parametrize("point", ["outbox.before-append", "log.after-append", "outbox.after-append"])
def test_a_crash_in_the_relay_sends_nothing_twice(topics: Any, store: StateStore, point: str) -> None:
    log = MemoryLog(topics)
    sent = traffic(seed=3, events=100)
    log.append(sent.records)
    run(loop(log, store))
    clock = store.clock = HandClock(datetime(2026, 1, 1, tzinfo=UTC))
    log.crash = crash = Raise(point, 2)
    settings = RelaySettings(batch=40, lease_s=30)
    with pytest.raises(Crashed):
        OutboxRelay(store, log, crash, settings, clock).step()
    OutboxRelay(store, log, settings=settings, clock=clock).step()
    assert len(store.pending(100)) == 40  # the batch that is in doubt waits for its lease
    clock.sleep(31)
    OutboxRelay(store, log, settings=settings, clock=clock).step()
    assert store.pending(1) == []
    assert len({letter.letter_id for letter in letters(log)}) == len(letters(log)) == sent.poisoned
    assert sum(log.end_offsets("diagnoses").values()) == 100


def test_a_log_that_fails_while_the_relay_sends_gets_each_row_once(
    memory_log: MemoryLog, store: StateStore
) -> None:
    memory_log.append(traffic(seed=4, events=60).records)
    run(loop(memory_log, store))
    clock = store.clock = HandClock(datetime(2026, 1, 1, tzinfo=UTC))
    relay = OutboxRelay(store, memory_log, clock=clock)
    memory_log.unavailable = 1
    with pytest.raises(LogError):
        relay.step()
    assert relay.step() == 0
    clock.sleep(31)
    relay.step()
    assert store.pending(1) == []
    assert sum(memory_log.end_offsets("diagnoses").values()) == 60


def test_a_transient_failure_pauses_and_never_makes_a_dead_letter(
    memory_log: MemoryLog, store: StateStore
) -> None:
    clock = HandClock(datetime(2026, 1, 1, tzinfo=UTC))
    away = [TeacherAway("503")] * 4

    def teacher(events: Sequence[Event]) -> Effects:
        if away:
            raise away.pop()
        return diagnose(events)

    send(memory_log, *(output(n) for n in range(20)))
    consuming = loop(
        memory_log,
        store,
        teacher,
        ConsumeSettings("monitor", (TOPIC,), transient=(TeacherAway,)),
        clock=clock,
    )
    waits = []
    while away:
        assert consuming.step() == 0
        assert consuming.waiting
        before = clock.now()
        while consuming.waiting and away:
            clock.sleep(0.25)
            assert consuming.step() == 0
            if consuming.counts["retries"] > len(waits) + 1:
                break
        waits.append((clock.now() - before).total_seconds())
    clock.sleep(60)
    run(consuming)
    assert waits[:3] == sorted(waits[:3])
    assert waits[2] > waits[0]
    assert store.buckets() == expected_buckets(output(n) for n in range(20))
    assert store.pending(100) and not [r for _, r in store.pending(100) if r.topic.endswith(".dlq")]


class FailingStore(StateStore):
    """A store whose next commits fail as if the database were away."""

    failures = 0

    def commit(self, batch: Any) -> None:
        if self.failures:
            self.failures -= 1
            raise StoreUnavailable("the database is away")
        super().commit(batch)


def test_a_database_that_goes_away_only_delays(memory_log: MemoryLog, store_url: str) -> None:
    store = FailingStore(store_url)
    store.failures = 3
    clock = HandClock(datetime(2026, 1, 1, tzinfo=UTC))
    sent = traffic(seed=5, events=120)
    memory_log.append(sent.records)
    consuming = loop(memory_log, store, clock=clock)
    for _ in range(20):
        consuming.step()
        clock.sleep(10)
    assert consuming.counts["retries"] == 3
    assert store.buckets() == expected_buckets(sent.events)
    store.close()


def test_a_log_that_goes_away_only_delays(memory_log: MemoryLog, store: StateStore) -> None:
    clock = HandClock(datetime(2026, 1, 1, tzinfo=UTC))
    send(memory_log, output(1))
    consuming = loop(memory_log, store, clock=clock)
    memory_log.unavailable = 2
    for _ in range(6):
        consuming.step()
        clock.sleep(5)
    assert store.buckets() == expected_buckets([output(1)])


def test_a_bug_in_the_handler_costs_only_its_event(memory_log: MemoryLog, store: StateStore) -> None:
    calls: list[int] = []

    def buggy(events: Sequence[Event]) -> Effects:
        calls.append(len(events))
        if any(event.event_id == output(3).event_id for event in events):
            raise KeyError("bug")
        return diagnose(events)

    send(memory_log, *(output(n) for n in range(6)))
    run(loop(memory_log, store, buggy))
    OutboxRelay(store, memory_log).step()
    (letter,) = letters(memory_log)
    assert (letter.reason, letter.message, letter.attempts) == ("failed", "KeyError: 'bug'", 3)
    assert store.buckets() == expected_buckets(output(n) for n in range(6) if n != 3)


def test_an_event_that_failed_can_be_redriven(memory_log: MemoryLog, store: StateStore) -> None:
    send(memory_log, output(1), output(2))
    first = loop(
        memory_log, store, lambda events: Effects(failed={event.identity: "not yet" for event in events})
    )
    run(first)
    OutboxRelay(store, memory_log).step()
    assert store.buckets() == {}
    first.close()
    memory_log.append([dead_letters.redrive(letter) for letter in letters(memory_log)])
    run(loop(memory_log, store))
    assert store.buckets() == expected_buckets([output(1), output(2)])


def test_what_the_database_refuses_is_a_dead_letter_and_the_rest_counts(
    memory_log: MemoryLog, store: StateStore
) -> None:
    def careless(events: Sequence[Event]) -> Effects:
        counts = dict(diagnose(events).buckets)
        if any(event.event_id == output(2).event_id for event in events):
            counts[("s", 1, "add", 2**80)] = (1, 0)
        return Effects(buckets=counts)

    send(memory_log, *(output(n) for n in range(5)))
    run(loop(memory_log, store, careless))
    OutboxRelay(store, memory_log).step()
    assert [letter.reason for letter in letters(memory_log)] == ["refused"]
    assert store.buckets() == expected_buckets(output(n) for n in range(5) if n != 2)


def test_a_member_that_lost_its_partitions_cannot_write(memory_log: MemoryLog, store: StateStore) -> None:
    send(memory_log, *(output(n) for n in range(40)))
    other: list[ConsumeLoop] = []

    def slow(events: Sequence[Event]) -> Effects:
        if not other:  # while this one thinks, the group gives its partitions to another
            memory_log.members["monitor"].clear()
            other.append(loop(memory_log, store))
            run(other[0])
        return diagnose(events)

    lost = loop(memory_log, store, slow)
    assert lost.step() == 0
    assert lost.counts["fenced"] == 1
    assert store.buckets() == expected_buckets(output(n) for n in range(40))


def test_a_partition_lost_and_regained_within_a_poll_is_not_read_twice(
    memory_log: MemoryLog, store: StateStore
) -> None:
    memory_log.append([poison("not-json", 0)])
    consuming = loop(memory_log, store)
    run(consuming)
    consumer = consuming._consumer  # noqa: SLF001
    consumer.seek(dict.fromkeys(consumer.assignment(), 0))
    send(memory_log, output(1))
    run(consuming)
    OutboxRelay(store, memory_log).step()
    assert len(letters(memory_log)) == 1
    assert store.buckets() == expected_buckets([output(1)])


def test_a_topic_that_was_made_anew_is_a_clear_error(
    memory_log: MemoryLog, topics: Any, store: StateStore
) -> None:
    send(memory_log, *(output(n) for n in range(20)))
    run(loop(memory_log, store))
    with pytest.raises(LogError, match="made anew"):
        run(loop(MemoryLog(topics), store))


def test_an_oversized_record_is_cut_only_beyond_what_a_topic_takes(
    memory_log: MemoryLog, store: StateStore
) -> None:
    good = encode(output(1))
    huge = [
        Outgoing(TOPIC, good.key, b"x" * size, good.headers) for size in (1_048_577, MAX_LETTER_BYTES + 1)
    ]
    memory_log.append(huge)
    run(loop(memory_log, store))
    OutboxRelay(store, memory_log).step()
    whole, cut = letters(memory_log)
    assert (whole.reason, len(whole.position.value), whole.cut_from) == ("oversized", 1_048_577, 0)
    assert (len(cut.position.value), cut.cut_from) == (MAX_LETTER_BYTES, MAX_LETTER_BYTES + 1)
    assert dead_letters.redrive(whole).value == huge[0].value
    with pytest.raises(ValueError, match="cannot be redriven"):
        dead_letters.redrive(cut)


def test_dead_letters_keep_everything_and_say_why(memory_log: MemoryLog, store: StateStore) -> None:
    sent = poison("unknown-version", 7)
    memory_log.append([encode(output(0)), sent])
    run(loop(memory_log, store))
    OutboxRelay(store, memory_log).step()
    (letter,) = letters(memory_log)
    position = next(
        r
        for records in memory_log.records.values()
        for r in records
        if r.value == sent.value and r.partition.topic == TOPIC
    )
    assert (Partition(letter.topic, letter.partition), letter.offset) == (position.partition, position.offset)
    assert letter.reason == "unknown-version"
    assert "99" in letter.message
    origin = (dead_letters.ORIGIN, letter.letter_id.encode())
    assert dead_letters.redrive(letter) == replace(sent, headers=(*sent.headers, origin))
