"""The event-log port: partitioned, append-only, consumed in groups. Implementations: local, memory, Kafka.

Values and keys are bytes everywhere. Positions belong to the consumer's own state store: a consumer seeks to
the offsets it has stored; what it commits to the log is only for lag tools.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, Self

from streams.errors import StreamsError

Header = tuple[str, bytes]
Headers = Sequence[Header]
UNREADABLE = "skillloop_unreadable"
"""A header of a record that stands for what the log could not hand out; its value says why."""


class LogError(StreamsError):
    """The event log failed; the message names the log, what was tried and what to do."""


class LogUnavailable(LogError):
    """The log cannot be reached now: retry with back-off, nothing is lost."""


class MemberFenced(LogError):
    """The log has given this group member's name to another connection: end this process; a supervisor may
    start it again."""


class RecordRefused(LogError):
    """The log can never take one of the records: it is too large or malformed. The others of its append may
    have been written."""


class TopicMissing(LogError):
    """A topic does not exist. `skillloop topics create` makes them all."""


class Partition(NamedTuple):
    """One partition of one topic."""

    topic: str
    number: int


class Record(NamedTuple):
    """A record as read: where it stands and its bytes. (A named tuple: one is made per event, and this is the
    cheapest.)"""

    partition: Partition
    offset: int
    key: bytes | None
    value: bytes
    headers: Headers = ()


@dataclass(frozen=True)
class Outgoing:
    """A record to be written; the partition follows from the key."""

    topic: str
    key: bytes | None
    value: bytes
    headers: Headers = ()


def first_header(headers: Headers, name: str) -> bytes | None:
    """The value of the first header of that name. Headers that know a quicker way than to be gone through
    have a method `first`."""
    quick: Callable[[str], bytes | None] | None = getattr(headers, "first", None)
    if quick is not None:
        return quick(name)
    return next((value for header, value in headers if header == name), None)


def dump_headers(headers: Headers) -> str:
    """A record's headers as text; `load_headers` reads them."""
    return json.dumps([[name, value.hex()] for name, value in headers])


def load_headers(text: str) -> Headers:
    """The headers that `dump_headers` wrote."""
    return tuple((name, bytes.fromhex(value)) for name, value in json.loads(text))


class Consumer(Protocol):
    """One member of a consumer group."""

    def poll(self, max_records: int, timeout_s: float) -> list[Record]:
        """Up to `max_records` next records of the assigned partitions, in order within a partition; empty
        after `timeout_s`."""

    def assignment(self) -> frozenset[Partition]:
        """The partitions this member reads now. It may change inside `poll`."""

    def topic_ids(self) -> Mapping[str, str]:
        """The topics' identities as far as this member has heard of them by itself: nobody is asked."""

    def seek(self, offsets: Mapping[Partition, int]) -> None:
        """Read on from these offsets (next offset to read)."""

    def pause(self) -> None:
        """Return nothing from `poll` until `resume`, but stay in the group: `poll` must still be called."""

    def resume(self) -> None:
        """Undo `pause`."""

    def commit(self, offsets: Mapping[Partition, int]) -> None:
        """Tell the log how far the group has come (next offsets). For lag tools only."""

    def close(self) -> None:
        """Leave the group."""


class EventLog(Protocol):
    """An event log."""

    def append(self, records: Sequence[Outgoing]) -> None:
        """Write durably, all in order per key; returns after the acknowledgement. Raises `LogUnavailable`,
        `TopicMissing`."""

    def consumer(self, group: str, topics: Sequence[str]) -> Consumer:
        """A new member of `group` reading `topics` from the group's commits, else from the beginning."""

    def end_offsets(self, topic: str) -> dict[Partition, int]:
        """Next offset to be written, per partition. Raises `TopicMissing`, `LogUnavailable`."""

    def begin_offsets(self, topic: str) -> dict[Partition, int]:
        """Offset of the oldest record that is still there, per partition. Raises as `end_offsets`."""

    def topic_id(self, topic: str) -> str:
        """What tells this topic from another one of the same name, made after it was deleted (KIP-516)."""

    def read(self, topic: str, start: Mapping[Partition, int] | None = None) -> Iterator[Record]:
        """Every record that is in `topic` now, from the offsets in `start` (else the oldest kept), in order
        within a partition.

        Belongs to no group and moves no offset. Raises `TopicMissing`, `LogUnavailable`.
        """

    def close(self) -> None:
        """Release connections. The log can be used as a context manager."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...
