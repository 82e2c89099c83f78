"""The embedded event log: one SQLite file in WAL mode, durable, shared by several processes on one machine.

Every append is one transaction with `synchronous=FULL`. Group members are rows with a lease that every poll
renews, measured by the time since boot, which all processes of the machine share and nobody sets; a member
that died loses its partitions when the lease ends (the state store's compare-and-set keeps it from writing in
any case). With an `instance` name the member keeps its identity over restarts (static
membership) and takes its partitions back at once.
"""

from __future__ import annotations

import sqlite3
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self, TypeVar

from streams.clock import Clock, SystemClock
from streams.log import (
    LogError,
    LogUnavailable,
    Outgoing,
    Partition,
    Record,
    TopicMissing,
    dump_headers,
    load_headers,
)
from streams.partitions import in_turn, partition_of, share
from streams.topics import TOPICS, TopicSpec

_SCHEMA = """
CREATE TABLE IF NOT EXISTS topics (name TEXT PRIMARY KEY, partitions INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS records (topic TEXT, number INTEGER, position INTEGER, key BLOB,
    value BLOB NOT NULL, headers TEXT NOT NULL, PRIMARY KEY (topic, number, position)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS commits (member_group TEXT, topic TEXT, number INTEGER, position INTEGER NOT NULL,
    PRIMARY KEY (member_group, topic, number)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS members (member_group TEXT, member TEXT, expires REAL NOT NULL,
    PRIMARY KEY (member_group, member)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS identity (number INTEGER PRIMARY KEY, id TEXT NOT NULL);
"""
LEASE_S = 30.0
RENEW_S = LEASE_S / 6
POLL_S = 0.05
READ_RECORDS = 1000
T = TypeVar("T")


class LocalLog:
    """See the module's description. Raises `LogUnavailable` when the file cannot be opened, is locked too
    long, or the disk is full."""

    def __init__(
        self,
        path: Path,
        topics: Sequence[TopicSpec] = TOPICS,
        clock: Clock | None = None,
        instance: str | None = None,
    ) -> None:
        self.path = path
        self.instance = instance
        self.clock = clock or SystemClock()
        self._lock = threading.RLock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_SCHEMA)
            self._db.executemany(
                "INSERT OR IGNORE INTO topics VALUES (?, ?)",
                [(spec.name, spec.partitions) for spec in topics],
            )
            self._db.execute("INSERT OR IGNORE INTO identity VALUES (1, ?)", (str(uuid.uuid4()),))
        except (OSError, sqlite3.Error) as exc:
            raise LogUnavailable(
                f"cannot open the event log {path}: {exc}; check that the folder exists and is writable"
            ) from exc

    def append(self, records: Sequence[Outgoing]) -> None:
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    self._write(records)
                    self._db.execute("COMMIT")
                except BaseException:
                    if self._db.in_transaction:  # a full disk ends the transaction by itself
                        self._db.execute("ROLLBACK")
                    raise
            except sqlite3.Error as exc:
                raise LogUnavailable(
                    f"cannot append {len(records)} records to {self.path}: {exc}; nothing was written"
                ) from exc

    def _write(self, records: Sequence[Outgoing]) -> None:
        ends: dict[Partition, int] = {}
        counts = self.partition_counts()
        rows = []
        for record in records:
            if record.topic not in counts:
                raise TopicMissing(
                    f"topic {record.topic!r} does not exist in {self.path}; "
                    f"known: {', '.join(sorted(counts))}"
                )
            partition = Partition(record.topic, partition_of(record.key, counts[record.topic]))
            position = ends[partition] if partition in ends else self._end(partition)
            ends[partition] = position + 1
            headers = dump_headers(record.headers)
            rows.append((partition.topic, partition.number, position, record.key, record.value, headers))
        self._db.executemany("INSERT INTO records VALUES (?, ?, ?, ?, ?, ?)", rows)

    def _do(self, what: str, action: Callable[[], T]) -> T:
        with self._lock:
            try:
                return action()
            except sqlite3.Error as exc:
                raise LogUnavailable(f"cannot {what} in the event log {self.path}: {exc}") from exc

    def _end(self, partition: Partition) -> int:
        query = "SELECT COALESCE(MAX(position) + 1, 0) FROM records WHERE topic = ? AND number = ?"
        return int(self._db.execute(query, (partition.topic, partition.number)).fetchone()[0])

    def partition_counts(self) -> dict[str, int]:
        """Topic -> number of partitions."""
        return dict(
            self._do(
                "read the topics", lambda: self._db.execute("SELECT name, partitions FROM topics").fetchall()
            )
        )

    def end_offsets(self, topic: str) -> dict[Partition, int]:
        partitions = self.partitions([topic])
        return self._do("read offsets", lambda: {partition: self._end(partition) for partition in partitions})

    def begin_offsets(self, topic: str) -> dict[Partition, int]:
        return dict.fromkeys(self.partitions([topic]), 0)  # nothing is ever deleted

    def topic_id(self, topic: str) -> str:
        self.partitions([topic])
        query = "SELECT id FROM identity"
        return str(self._do("read the identity", lambda: self._db.execute(query).fetchone()[0]))

    def partitions(self, topics: Sequence[str]) -> list[Partition]:
        """All partitions of these topics. Raises `TopicMissing`."""
        counts = self.partition_counts()
        missing = [topic for topic in topics if topic not in counts]
        if missing:
            raise TopicMissing(
                f"topic {missing[0]!r} does not exist in {self.path}; known: {', '.join(sorted(counts))}"
            )
        return [Partition(topic, number) for topic in topics for number in range(counts[topic])]

    def read(self, topic: str, start: Mapping[Partition, int] | None = None) -> Iterator[Record]:
        for partition, end in self.end_offsets(topic).items():
            position = (start or {}).get(partition, 0)
            while position < end:
                records = self.fetch(partition, position, min(READ_RECORDS, end - position))
                if not records:
                    break
                yield from records
                position = records[-1].offset + 1

    def fetch(self, partition: Partition, start: int, limit: int) -> list[Record]:
        """Up to `limit` records of one partition from offset `start`."""
        query = (
            "SELECT position, key, value, headers FROM records "
            "WHERE topic = ? AND number = ? AND position >= ? ORDER BY position LIMIT ?"
        )
        rows = self._do("read", lambda: self._db.execute(query, (*partition, start, limit)).fetchall())
        return [
            Record(partition, position, key, value, load_headers(headers))
            for position, key, value, headers in rows
        ]

    def consumer(self, group: str, topics: Sequence[str]) -> LocalConsumer:
        return LocalConsumer(self, group, topics)

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def renew(self, group: str, member: str) -> list[str]:
        """Renew a member's lease where it is due, and return the living members. (A renewal is a write: not
        at every poll.)"""
        now = self.clock.monotonic()
        latest = now + LEASE_S + RENEW_S  # a lease that ends later was written before the machine was started
        query = "SELECT member, expires FROM members WHERE member_group = ? AND expires BETWEEN ? AND ?"
        dead = "DELETE FROM members WHERE member_group = ? AND expires NOT BETWEEN ? AND ?"

        def act() -> list[str]:
            living = dict(self._db.execute(query, (group, now, latest)).fetchall())
            if living.get(member, 0.0) < now + LEASE_S - RENEW_S:
                self._db.execute(dead, (group, now, latest))
                self._db.execute(
                    "INSERT OR REPLACE INTO members VALUES (?, ?, ?)", (group, member, now + LEASE_S)
                )
                living[member] = now + LEASE_S
            return list(living)

        return self._do("renew a membership", act)

    def leave(self, group: str, member: str) -> None:
        """Give up a member's partitions at once."""
        query = "DELETE FROM members WHERE member_group = ? AND member = ?"
        self._do("leave a group", lambda: self._db.execute(query, (group, member)))

    def commits(self, group: str) -> dict[Partition, int]:
        """The group's committed next offsets."""
        query = "SELECT topic, number, position FROM commits WHERE member_group = ?"
        rows = self._do("read commits", lambda: self._db.execute(query, (group,)).fetchall())
        return {Partition(topic, number): position for topic, number, position in rows}

    def save_commits(self, group: str, offsets: Mapping[Partition, int]) -> None:
        """Store committed next offsets."""
        rows = [(group, partition.topic, partition.number, offset) for partition, offset in offsets.items()]
        self._do(
            "commit offsets",
            lambda: self._db.executemany("INSERT OR REPLACE INTO commits VALUES (?, ?, ?, ?)", rows),
        )


class LocalConsumer:
    """One group member of a `LocalLog`."""

    def __init__(self, log: LocalLog, group: str, topics: Sequence[str]) -> None:
        self._log = log
        self._group = group
        self._partitions = log.partitions(topics)
        self._turn = 0
        self._member = log.instance or str(uuid.uuid4())
        self._positions: dict[Partition, int] = {}
        self._assigned: frozenset[Partition] = frozenset()
        self._paused = False
        self._refresh()

    def _refresh(self) -> None:
        members = self._log.renew(self._group, self._member)
        assigned = share(self._partitions, members, self._member)
        gained = assigned - self._assigned
        commits = self._log.commits(self._group) if gained else {}
        self._positions.update({partition: commits.get(partition, 0) for partition in gained})
        self._assigned = assigned

    def poll(self, max_records: int, timeout_s: float) -> list[Record]:
        waited = 0.0
        while True:
            self._refresh()
            records = [] if self._paused else self._fetch(max_records)
            if records or waited >= timeout_s:
                break
            self._log.clock.sleep(POLL_S)
            waited += POLL_S
        for record in records:
            self._positions[record.partition] = record.offset + 1
        return records

    def _fetch(self, max_records: int) -> list[Record]:
        records: list[Record] = []
        self._turn += 1
        for partition in in_turn(self._assigned, self._turn):
            room = max_records - len(records)
            if room <= 0:
                break
            records += self._log.fetch(partition, self._positions[partition], room)
        return records

    def assignment(self) -> frozenset[Partition]:
        return self._assigned

    def topic_ids(self) -> Mapping[str, str]:
        return {}  # its file cannot be replaced while it is open

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False

    def seek(self, offsets: Mapping[Partition, int]) -> None:
        foreign = set(offsets) - self._assigned
        if foreign:
            raise LogError(
                f"cannot seek in {min(foreign)}: it is not assigned to this member of {self._group}"
            )
        self._positions.update(offsets)

    def commit(self, offsets: Mapping[Partition, int]) -> None:
        self._log.save_commits(self._group, offsets)

    def close(self) -> None:
        self._log.leave(self._group, self._member)
