"""The event-log port's conformance suite, run over the fake, the local log and a real Kafka."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from streams.log import Consumer, LogError, Outgoing, Partition, Record, TopicMissing

Logs = Any


def drain(consumer: Consumer, count: int, max_records: int = 500, within_s: float = 20.0) -> list[Record]:
    """Poll until `count` records have come."""
    found: list[Record] = []
    deadline = time.monotonic() + within_s
    while len(found) < count and time.monotonic() < deadline:
        found += consumer.poll(max_records, 0.2)
    return found


def until(consumers: list[Consumer], met: Callable[[], bool], within_s: float = 30.0) -> None:
    """Poll all members until a condition on their assignments is met."""
    deadline = time.monotonic() + within_s
    while not met():
        assert time.monotonic() < deadline, [sorted(c.assignment()) for c in consumers]
        for consumer in consumers:
            consumer.poll(1, 0.05)


def numbered(topic: str, count: int, keys: int = 20) -> list[Outgoing]:
    return [Outgoing(topic, f"key-{n % keys}".encode(), str(n).encode()) for n in range(count)]


def test_bytes_keys_and_headers_come_back_as_they_were(logs: Logs) -> None:
    sent = [
        Outgoing(logs.one, None, b"", ()),
        Outgoing(logs.one, b"\x00\xff", b"\x00\x80value", (("a", b"\xff\x00"), ("b", b""), ("a", b"again"))),
        Outgoing(logs.one, "schlüssel".encode(), "größe \U0001f600".encode(), (("überschrift", b"x"),)),
    ]
    log = logs.open()
    log.append(sent)
    found = list(log.read(logs.one))
    assert [(r.key, r.value, r.headers) for r in found] == [(r.key, r.value, r.headers) for r in sent]
    assert [r.offset for r in found] == [0, 1, 2]
    assert all(isinstance(r.value, bytes) and r.partition == Partition(logs.one, 0) for r in found)


def test_everything_arrives_once_and_in_order_per_key(logs: Logs) -> None:
    log = logs.open()
    log.append(numbered(logs.four, 400))
    consumer = log.consumer(logs.group, [logs.four])
    found = drain(consumer, 400)
    assert sorted(int(r.value) for r in found) == list(range(400))
    for key in {r.key for r in found}:
        own = [r for r in found if r.key == key]
        assert len({r.partition for r in own}) == 1
        assert [int(r.value) for r in own] == sorted(int(r.value) for r in own)
    assert len({r.partition for r in found}) > 1
    assert consumer.poll(10, 0.1) == []
    consumer.close()


def test_a_poll_returns_at_most_max_records_and_no_partition_starves(logs: Logs) -> None:
    log = logs.open()
    log.append(numbered(logs.four, 400))
    consumer = log.consumer(logs.group, [logs.four])
    until([consumer], lambda: len(consumer.assignment()) == 4)
    consumer.seek(dict.fromkeys(consumer.assignment(), 0))
    polls = [consumer.poll(7, 1.0) for _ in range(50)]
    assert all(len(found) <= 7 for found in polls)
    if logs.kind != "kafka":  # Kafka hands out what it has fetched partition by partition
        assert len({r.partition for found in polls[:8] for r in found}) == 4
    consumer.close()


def test_members_share_the_partitions_and_take_over_from_one_that_leaves(logs: Logs) -> None:
    one, two = logs.open().consumer(logs.group, [logs.four]), logs.open().consumer(logs.group, [logs.four])
    until(
        [one, two],
        lambda: (
            len(one.assignment()) == len(two.assignment()) == 2 and not one.assignment() & two.assignment()
        ),
    )
    one.close()
    until([two], lambda: len(two.assignment()) == 4)
    two.close()


def test_groups_read_independently(logs: Logs) -> None:
    log = logs.open()
    log.append(numbered(logs.four, 20))
    for group in (f"{logs.group}-a", f"{logs.group}-b"):
        consumer = log.consumer(group, [logs.four])
        assert len(drain(consumer, 20)) == 20
        consumer.close()


def test_a_new_member_starts_at_the_commit(logs: Logs) -> None:
    log = logs.open()
    log.append(numbered(logs.one, 10))
    first = log.consumer(logs.group, [logs.one])
    assert len(drain(first, 10)) == 10
    first.commit({Partition(logs.one, 0): 4})
    first.close()
    second = log.consumer(logs.group, [logs.one])
    assert [r.offset for r in drain(second, 6)] == [4, 5, 6, 7, 8, 9]
    second.close()


def test_seek_reads_again_and_refuses_foreign_partitions(logs: Logs) -> None:
    log = logs.open()
    log.append(numbered(logs.one, 5))
    consumer = log.consumer(logs.group, [logs.one])
    drain(consumer, 5)
    consumer.seek({Partition(logs.one, 0): 3})
    assert [r.offset for r in drain(consumer, 2)] == [3, 4]
    with pytest.raises(LogError, match="not assigned"):
        consumer.seek({Partition(logs.four, 0): 0})
    consumer.close()


def test_a_paused_member_keeps_its_partitions_and_loses_nothing(logs: Logs) -> None:
    log = logs.open()
    consumer = log.consumer(logs.group, [logs.one])
    until([consumer], lambda: len(consumer.assignment()) == 1)
    consumer.pause()
    log.append(numbered(logs.one, 3))
    assert [consumer.poll(10, 0.2) for _ in range(3)] == [[], [], []]
    assert len(consumer.assignment()) == 1
    consumer.resume()
    assert [r.offset for r in drain(consumer, 3)] == [0, 1, 2]
    consumer.close()


def test_end_offsets_and_reading_from_given_offsets(logs: Logs) -> None:
    log = logs.open()
    assert log.end_offsets(logs.four) == {Partition(logs.four, n): 0 for n in range(4)}
    assert list(log.read(logs.four)) == []
    log.append(numbered(logs.four, 40))
    before = log.end_offsets(logs.four)
    log.append(numbered(logs.four, 8))
    assert sum(before.values()) == 40
    assert sorted(int(r.value) for r in log.read(logs.four, before)) == list(range(8))
    assert len(list(log.read(logs.four))) == 48


def test_a_missing_topic_is_named(logs: Logs) -> None:
    log = logs.open()
    for attempt in (
        lambda: log.append([Outgoing("nowhere", b"k", b"v")]),
        lambda: log.consumer(logs.group, ["nowhere"]),
        lambda: log.end_offsets("nowhere"),
        lambda: list(log.read("nowhere")),
    ):
        with pytest.raises(TopicMissing, match="nowhere"):
            attempt()
    assert log.end_offsets(logs.one) == {Partition(logs.one, 0): 0}


def test_a_record_of_eight_mebibytes_passes(logs: Logs) -> None:
    log = logs.open()
    value = bytes(range(256)) * (8 * 4096)
    log.append([Outgoing(logs.one, b"k", value), Outgoing(logs.one, b"k", b"after")])
    consumer = log.consumer(logs.group, [logs.one])
    assert [len(r.value) for r in drain(consumer, 2)] == [len(value), 5]
    consumer.close()


def test_what_was_appended_is_there_for_a_new_client(logs: Logs) -> None:
    logs.open().append(numbered(logs.one, 3))
    assert [r.value for r in logs.open().read(logs.one)] == [b"0", b"1", b"2"]


def test_a_named_member_that_comes_back_takes_its_partitions_again(logs: Logs) -> None:
    first = logs.open("worker-1").consumer(logs.group, [logs.four])
    until([first], lambda: len(first.assignment()) == 4)
    first.close()
    second = logs.open("worker-1").consumer(logs.group, [logs.four])
    until([second], lambda: len(second.assignment()) == 4, within_s=5)
    second.close()
