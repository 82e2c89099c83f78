"""The in-memory event log: a fake for tests, with crash points and ordered outages. One process, one
thread."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Self

from streams.crash import CrashPoint, no_crash
from streams.log import LogError, LogUnavailable, Outgoing, Partition, Record, RecordRefused, TopicMissing
from streams.partitions import in_turn, partition_of, share
from streams.topics import TOPICS, TopicSpec


class MemoryLog:
    """Same behaviour as the real ones, in one process. `unavailable` counts appends and polls that fail
    before it works again."""

    def __init__(self, topics: Sequence[TopicSpec] = TOPICS, crash: CrashPoint = no_crash) -> None:
        self.records: dict[Partition, list[Record]] = {
            Partition(spec.name, n): [] for spec in topics for n in range(spec.partitions)
        }
        self.limits = {spec.name: spec.max_bytes for spec in topics}
        self.commits: dict[str, dict[Partition, int]] = defaultdict(dict)
        self.members: dict[str, list[str]] = defaultdict(list)
        self.crash = crash
        self.unavailable = 0
        self.begins: dict[Partition, int] = {}  # records before these have been deleted
        self.identity = str(uuid.uuid4())
        self._names = 0

    def append(self, records: Sequence[Outgoing]) -> None:
        self.crash("log.before-append")
        self.check_available("append")
        for record in records:
            size = len(record.value) + sum(len(value) for _, value in record.headers)
            if size > self.limits.get(record.topic, size):
                raise RecordRefused(
                    f"{size} bytes for topic {record.topic!r}, which takes {self.limits[record.topic]}"
                )
            count = len(self.partitions([record.topic]))
            partition = Partition(record.topic, partition_of(record.key, count))
            position = len(self.records[partition])
            self.records[partition].append(
                Record(partition, position, record.key, record.value, record.headers)
            )
        self.crash("log.after-append")

    def make_anew(self) -> None:
        """Delete all topics and create them again: readers find themselves beyond the end, or in other
        records."""
        self.identity = str(uuid.uuid4())
        for records in self.records.values():
            records.clear()

    def check_available(self, what: str) -> None:
        """Raise `LogUnavailable` while outages are ordered."""
        if self.unavailable > 0:
            self.unavailable -= 1
            raise LogUnavailable(f"the memory log was told to be unavailable ({what})")

    def partitions(self, topics: Sequence[str]) -> list[Partition]:
        """All partitions of these topics. Raises `TopicMissing`."""
        known = {partition.topic for partition in self.records}
        for topic in topics:
            if topic not in known:
                raise TopicMissing(
                    f"topic {topic!r} does not exist in the memory log; known: {', '.join(sorted(known))}"
                )
        return [partition for partition in self.records if partition.topic in topics]

    def end_offsets(self, topic: str) -> dict[Partition, int]:
        return {partition: len(self.records[partition]) for partition in self.partitions([topic])}

    def begin_offsets(self, topic: str) -> dict[Partition, int]:
        return {partition: self.begins.get(partition, 0) for partition in self.partitions([topic])}

    def topic_id(self, topic: str) -> str:
        self.partitions([topic])
        return self.identity

    def read(self, topic: str, start: Mapping[Partition, int] | None = None) -> Iterator[Record]:
        self.check_available("read")
        for partition in self.partitions([topic]):
            first = max((start or {}).get(partition, 0), self.begins.get(partition, 0))
            yield from self.records[partition][first:]

    def consumer(self, group: str, topics: Sequence[str]) -> MemoryConsumer:
        self.partitions(topics)
        self._names += 1
        member = f"member-{self._names:06d}"
        self.members[group].append(member)
        return MemoryConsumer(self, group, topics, member)

    def close(self) -> None:
        """Nothing to release."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class MemoryConsumer:
    """One group member of a `MemoryLog`."""

    def __init__(self, log: MemoryLog, group: str, topics: Sequence[str], member: str) -> None:
        self._log = log
        self._group = group
        self._topics = tuple(topics)
        self._member = member
        self._positions: dict[Partition, int] = {}
        self._assigned: frozenset[Partition] = frozenset()
        self._paused = False
        self._turn = 0
        self._refresh()

    def _refresh(self) -> None:
        """Positions start at the group's commits, as they do in the real logs; the loop seeks to the store's
        offsets."""
        assigned = share(self._log.partitions(self._topics), self._log.members[self._group], self._member)
        for partition in assigned - self._assigned:
            self._positions[partition] = self._log.commits[self._group].get(partition, 0)
        self._assigned = assigned

    def poll(self, max_records: int, timeout_s: float) -> list[Record]:
        self._log.check_available("poll")
        self._refresh()
        records: list[Record] = []
        self._turn += 1
        for partition in () if self._paused else in_turn(self._assigned, self._turn):
            start = max(self._positions[partition], self._log.begins.get(partition, 0))
            if start > len(self._log.records[partition]):
                start = 0  # out of range: back to the earliest, as Kafka's auto_offset_reset does
            records += self._log.records[partition][start : start + max_records - len(records)]
        for record in records:
            self._positions[record.partition] = record.offset + 1
        return records

    def assignment(self) -> frozenset[Partition]:
        return self._assigned

    def topic_ids(self) -> Mapping[str, str]:
        return dict.fromkeys(self._topics, self._log.identity)

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False

    def seek(self, offsets: Mapping[Partition, int]) -> None:
        foreign = set(offsets) - self._assigned
        if foreign:
            raise LogError(f"cannot seek in {min(foreign)}: it is not assigned to {self._member}")
        self._positions.update(offsets)

    def commit(self, offsets: Mapping[Partition, int]) -> None:
        self._log.commits[self._group].update(offsets)

    def close(self) -> None:
        if self._member in self._log.members[self._group]:
            self._log.members[self._group].remove(self._member)
