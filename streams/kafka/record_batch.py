"""The records of a Kafka record batch (message format v2), read straight into `streams.log.Record`.

Why the project has code for this: the client library spends 12 of its 17 microseconds an event on it
(decision 0024). Source of the format: Apache Kafka's documentation, "Record Batch" and "Record" (KIP-98).
Nothing here imports the client library; `streams.kafka.seams` puts `ReadByBatch` before the library's own
class.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from streams.kafka.codecs import BatchTooLarge, decompress
from streams.log import UNREADABLE, Header, Headers, Partition, Record

_LAYOUTS_KEPT = 256
_BYTES_LEARNT = 512  # of a block: its regular expression takes a hundred times the memory
_LEARNING = 512  # records between two layouts that are learnt: one costs as much as to read 200 anew
_LAYOUTS_AHEAD = 64
_SHOWN = 4096  # bytes of an unreadable batch that are kept


class _Layout(NamedTuple):
    """How a header block is built: one producer's are alike, with the same names and values of the same
    lengths."""

    match: Callable[[bytes], re.Match[bytes] | None]  # a group for each value
    names: tuple[str, ...]
    places: dict[str, int]
    """The group of the first header of each name."""


class _Matched(Sequence[Header]):
    """Headers that are split only when somebody looks: most records are asked for their type alone."""

    __slots__ = ("_layout", "_match")

    def __init__(self, layout: _Layout, match: re.Match[bytes]) -> None:
        self._layout, self._match = layout, match

    def first(self, name: str) -> bytes | None:
        """The value of the first header of that name."""
        place = self._layout.places.get(name)
        return None if place is None else self._match[place]

    def _split(self) -> tuple[Header, ...]:
        return tuple(zip(self._layout.names, self._match.groups(), strict=True))

    def __len__(self) -> int:
        return len(self._layout.names)

    def __getitem__(self, index: Any) -> Any:
        return self._split()[index]

    def __iter__(self) -> Iterator[Header]:
        return iter(self._split())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self._split() == tuple(other)

    def __hash__(self) -> int:
        return hash(self._split())

    def __repr__(self) -> str:
        return repr(self._split())


class RecordReader:
    """Reads batches. Remembers the layouts of the header blocks it met, by length: to compare costs a sixth
    of reading anew. Where they change with every record, only a few are learnt."""

    def __init__(self) -> None:
        self._layouts: dict[int, _Layout] = {}
        self._credit = _LAYOUTS_AHEAD * _LEARNING

    def read(
        self, partition: Partition, base_offset: int, data: bytes, position: int, count: int
    ) -> list[Record]:
        """The `count` records that lie in `data` (uncompressed) from `position` to its end; null values
        become empty.

        Raises `ValueError` where the bytes are no such records.

        >>> RecordReader().read(Partition("t", 0), 7, bytes([16, 0, 0, 0, 2, 107, 2, 118, 0]), 0, 1)
        [Record(partition=Partition(topic='t', number=0), offset=7, key=b'k', value=b'v', headers=())]
        """
        records: list[Record] = []
        add, layouts = records.append, self._layouts
        self._credit = min(self._credit + count, _LAYOUTS_AHEAD * _LEARNING)
        try:
            for _ in range(count):
                length, position = _varint(data, position)
                end = position + length
                position += 1  # attributes, unused in v2
                while data[position] > 127:  # the time stamp, which nothing here reads
                    position += 1
                delta, position = _varint(data, position + 1)
                size, position = _varint(data, position)
                key = None if size < 0 else data[position : (position := position + size)]
                size, position = _varint(data, position)
                value = b"" if size < 0 else data[position : (position := position + size)]
                layout = layouts.get(end - position)
                if layout is not None and (match := layout.match(data[position:end])) is not None:
                    headers: Headers = _Matched(layout, match)
                    position = end
                else:
                    headers, position = self._headers(data, position)
                if position != end:
                    raise ValueError(f"a record ends at byte {position}, not at {end} as its length says")
                add(Record(partition, base_offset + delta, key, value, headers))
        except (IndexError, OverflowError) as exc:
            raise ValueError(f"a record goes beyond the {len(data)} bytes of its batch") from exc
        if position != len(data):
            raise ValueError(f"{count} records end at byte {position} of a batch of {len(data)}")
        return records

    def _headers(self, data: bytes, begin: int) -> tuple[Headers, int]:
        """Read a block of headers, and learn its layout."""
        count, position = _varint(data, begin)
        found: list[tuple[str, bytes]] = []
        fixed: list[bytes] = []
        since = begin
        for _ in range(count):
            size, position = _varint(data, position)
            name = data[position : (position := position + _positive(size))]
            size, position = _varint(data, position)
            fixed.append(data[since:position])
            value = b"" if size < 0 else data[position : (position := position + size)]
            since = position
            found.append((name.decode(), value))
        if found and position - begin <= _BYTES_LEARNT and self._credit >= _LEARNING:
            self._credit -= _LEARNING
            if len(self._layouts) >= _LAYOUTS_KEPT:
                self._layouts.clear()
            pattern = b"".join(
                re.escape(part) + b"(.{%d})" % len(value)
                for part, (_, value) in zip(fixed, found, strict=True)
            )
            names = tuple(name for name, _ in found)
            self._layouts[position - begin] = _Layout(
                re.compile(pattern, re.DOTALL).fullmatch,
                names,
                {name: place for place, name in reversed(list(enumerate(names, 1)))},
            )
        return tuple(found), position


def _positive(size: int) -> int:
    if size < 0:
        raise ValueError(f"the name of a header has the length {size}")
    return size


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """A zigzag-coded integer of variable length, and the position behind it."""
    byte = data[position]
    if byte < 128:
        return byte >> 1 ^ -(byte & 1), position + 1
    number = byte & 127
    shift = 7
    while True:
        position += 1
        byte = data[position]
        number |= (byte & 127) << shift
        if byte < 128:
            return number >> 1 ^ -(number & 1), position + 1
        shift += 7


class ReadByBatch:
    """Stands before kafka-python's `Fetcher.PartitionRecords`, what one fetch brought of one partition: hands
    out our records.

    The library then checks the batches' checksums and leaves out control records and aborted transactions:
    to it, a batch holds a single record, whose value is the list of ours. `corrupt` is the error to raise for
    a batch that makes no sense.
    """

    corrupt: type[Exception] = ValueError
    fetch_offset: int  # this and what follows are the library's, as is `drain`
    next_fetch_offset: int
    _next_inline_exception: Exception | None

    def __init__(self, fetch_offset: int, tp: Any, records: Any, **options: Any) -> None:
        batches = _Batches(records, Partition(*tp), self.corrupt)
        super().__init__(fetch_offset, tp, batches, **options)  # type: ignore[call-arg]
        self._waiting: list[Record] = []
        self._behind = fetch_offset  # the next offset when nothing waits

    def take(self, n: int | None = None) -> list[Record]:
        """Up to `n` records. An error comes after the records before it, and ends this fetch: the library
        would spin indefinitely."""
        taken: list[Record] = []
        while n is None or len(taken) < n:
            if not self._waiting and not self._next_batch(taken):
                break
            wanted = len(self._waiting) if n is None else n - len(taken)
            taken += self._waiting[:wanted]
            del self._waiting[:wanted]
        self.next_fetch_offset = self._waiting[0].offset if self._waiting else self._behind
        return taken

    def _next_batch(self, taken: list[Record]) -> bool:
        self.next_fetch_offset = self._behind
        try:
            batch = super().take(1)  # type: ignore[misc]
        except Exception as exc:
            if taken:
                self._next_inline_exception = exc
            else:
                self.drain()  # type: ignore[attr-defined]
                raise
            return False
        self._behind = self.next_fetch_offset
        for found in batch:
            self._waiting = [record for record in found.value if record.offset >= self.fetch_offset]
        return bool(batch)


class _Batches:
    """The batches of a fetch, each as one record for the library."""

    def __init__(self, records: Any, partition: Partition, corrupt: type[Exception]) -> None:
        self._records, self._partition, self._corrupt = records, partition, corrupt

    def next_batch(self) -> Any:
        batch = self._records.next_batch()
        if batch is None or (batch.magic == 2 and batch.is_control_batch):
            return batch
        return _Batch(batch, self._partition, self._corrupt)


class _Whole(NamedTuple):
    """A batch as one record, with all that the library asks of a record."""

    offset: int
    value: list[Record]
    size_in_bytes: int
    timestamp_type: int
    timestamp: int = 0
    key: None = None
    headers: tuple[()] = ()
    checksum: None = None

    def validate_crc(self) -> bool:
        """The batch's own sum has been checked."""
        return True


_READER = RecordReader()


class _Batch:
    def __init__(self, batch: Any, partition: Partition, corrupt: type[Exception]) -> None:
        self._batch, self._partition, self._corrupt = batch, partition, corrupt

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __iter__(self) -> Iterator[_Whole]:
        batch = self._batch
        # Written before Kafka 0.11: there are no headers in it, so no event of ours either
        if batch.magic < 2:
            found = [Record(self._partition, one.offset, one.key, one.value or b"") for one in batch]
            last = found[-1].offset
        else:
            found, last = self._read(), batch.last_offset
        yield _Whole(last, found, batch.size_in_bytes, batch.timestamp_type)

    def _read(self) -> list[Record]:
        batch = self._batch
        data = bytes(batch._buffer[batch._pos :])  # noqa: SLF001
        try:
            unpacked = decompress(batch.compression_type, data)
            return _READER.read(self._partition, batch.base_offset, unpacked, 0, batch.records_count)
        except BatchTooLarge as exc:
            return [self._unreadable(str(exc), data)]
        except ValueError as exc:
            raise self._corrupt(f"batch at offset {batch.base_offset} of {self._partition}: {exc}") from exc

    def _unreadable(self, why: str, data: bytes) -> Record:
        """One record in place of a whole batch, for its dead letter: where it stood and how it begins."""
        batch = self._batch
        text = f"the batch of offsets {batch.base_offset} to {batch.last_offset}: {why}"
        return Record(self._partition, batch.last_offset, None, data[:_SHOWN], ((UNREADABLE, text.encode()),))
