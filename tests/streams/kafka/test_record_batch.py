"""Our reader of record batches beside the client library's, on batches that the library has built."""

from __future__ import annotations

import gzip
import re
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka import TopicPartition
from kafka.consumer.fetcher import Fetcher, IsolationLevel
from kafka.errors import CorruptRecordError
from kafka.record import memory_records
from kafka.record.default_records import DefaultRecordBatch
from kafka.record.memory_records import MemoryRecords, MemoryRecordsBuilder

from streams.kafka import record_batch, seams
from streams.kafka.record_batch import RecordReader
from streams.log import Partition, Record, first_header

_PartitionRecords = seams.batch_reader()
TP = TopicPartition("t", 3)
NONE, GZIP = 0, 1
BIG = 1 << 20
HEADERS = st.lists(st.tuples(st.text(max_size=8), st.none() | st.binary(max_size=70)), max_size=3)
# Sizes on both sides of where a length takes another byte.
BYTES = st.none() | st.binary(max_size=5) | st.sampled_from([63, 64, 65, 8191, 8192]).map(bytes)
RECORDS = st.lists(st.tuples(st.integers(0, 2**40), BYTES, BYTES, HEADERS), min_size=1, max_size=6)
Written = list[tuple[int, bytes | None, bytes | None, list[tuple[str, bytes | None]]]]


def batch(records: Written, offset: int, codec: int = NONE, **producer: Any) -> bytes:
    """A record batch as a broker keeps it: with the offset that it gave."""
    builder = MemoryRecordsBuilder(magic=2, compression_type=codec, batch_size=BIG, **producer)
    for timestamp, key, value, headers in records:
        builder.append(timestamp, key, value, headers)
    builder.close()
    return offset.to_bytes(8, "big") + bytes(builder.buffer())[8:]


def fetched(kind: type[Any], data: bytes, offset: int = 0, **options: Any) -> Any:
    return kind(offset, TP, MemoryRecords(data), **options)


def shown(records: Any) -> list[Any]:
    return [
        (r.offset, r.key, r.value or b"", tuple((name, value or b"") for name, value in r.headers))
        for r in records
    ]


@given(
    batches=st.lists(st.tuples(RECORDS, st.sampled_from([NONE, GZIP])), min_size=1, max_size=4),
    skipped=st.integers(0, 8),
    takes=st.lists(st.integers(1, 7), min_size=1, max_size=12),
)
def test_reads_what_the_client_reads(
    batches: list[tuple[Written, int]], skipped: int, takes: list[int]
) -> None:
    data, offset = b"", 0
    for records, codec in batches:
        data += batch(records, offset, codec)
        offset += len(records)
    start = min(skipped, offset - 1)
    theirs, ours = fetched(Fetcher.PartitionRecords, data, start), fetched(_PartitionRecords, data, start)
    for wanted in [*takes, BIG, 1]:
        if theirs and ours:
            assert shown(ours.take(wanted)) == shown(theirs.take(wanted))
            assert ours.next_fetch_offset == theirs.next_fetch_offset
    assert not ours
    assert not theirs


@pytest.mark.parametrize("codec", [NONE, GZIP])
@pytest.mark.parametrize("magic", [0, 1])
def test_reads_what_was_written_before_kafka_0_11(magic: int, codec: int) -> None:
    builder = MemoryRecordsBuilder(magic=magic, compression_type=codec, batch_size=BIG)
    for number in range(3):
        builder.append(1000 + number, None, b"%d" % number)
    builder.close()
    theirs, ours = (
        fetched(kind, bytes(builder.buffer())) for kind in (Fetcher.PartitionRecords, _PartitionRecords)
    )
    for wanted in (2, 2):
        assert shown(ours.take(wanted)) == shown(theirs.take(wanted))
        assert ours.next_fetch_offset == theirs.next_fetch_offset
    assert not ours


@given(records=RECORDS, where=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255), cut=st.booleans())
def test_bytes_that_are_no_records_are_refused_and_nothing_else_is_raised(
    records: Written, where: float, byte: int, cut: bool
) -> None:
    body = batch(records, 0)[DefaultRecordBatch.HEADER_STRUCT.size :]
    at = int(where * len(body))
    reader = RecordReader()
    assert len(reader.read(Partition(*TP), 0, body, 0, len(records))) == len(records)
    broken = body[:at] if cut else body[:at] + bytes([byte]) + body[at + 1 :]
    try:
        found = reader.read(Partition(*TP), 0, broken, 0, len(records))
    except ValueError:
        return
    assert not cut
    assert len(found) == len(records)


def test_headers_of_a_known_layout_are_read_as_if_it_were_new() -> None:
    """The same lengths with other names, and one block that has the length of another."""
    some: Any = [
        [("a", b"12"), ("b", b"3")],
        [("a", b"45"), ("b", b"6")],
        [("b", b"45"), ("a", b"6")],
        [("a", b"4"), ("b", b"67")],
        [],
    ]
    blocks = [*some, *some]
    data = batch([(0, b"k", b"v", headers) for headers in blocks], 0)
    assert [r.headers for r in fetched(_PartitionRecords, data).take(BIG)] == [
        tuple(headers) for headers in blocks
    ]


def test_many_layouts_do_not_pile_up() -> None:
    reader = RecordReader()
    for size in range(1000):
        data = batch([(0, None, None, [("h", bytes(size))])], 0)
        (found,) = reader.read(Partition(*TP), 0, data, DefaultRecordBatch.HEADER_STRUCT.size, 1)
        assert found.headers == (("h", bytes(size)),)
    assert len(reader._layouts) <= 256  # noqa: SLF001


def test_layouts_that_change_with_every_record_are_not_learnt_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To learn one costs as much as to read two hundred records anew."""
    learnt: list[bytes] = []

    def learn(pattern: bytes, flags: re.RegexFlag) -> re.Pattern[bytes]:
        learnt.append(pattern)
        return re.compile(pattern, flags)

    names = SimpleNamespace(compile=learn, escape=re.escape, DOTALL=re.DOTALL)
    monkeypatch.setattr(record_batch, "re", names)  # the reader's alone
    two: Written = [(0, None, None, [("a", bytes(1 + n % 2)), ("b", bytes(2 - n % 2))]) for n in range(500)]
    reader, data = RecordReader(), batch(two, 0)
    for _ in range(60):
        found = reader.read(Partition(*TP), 0, data, DefaultRecordBatch.HEADER_STRUCT.size, 500)
    assert [tuple(record.headers) for record in found] == [tuple(headers) for *_, headers in two]
    assert 64 <= len(learnt) <= 64 + 60 * 500 / 512


def test_long_names_are_not_learnt(monkeypatch: pytest.MonkeyPatch) -> None:
    """A regular expression over a name of 3 MB took 9.5 s and 400 MB."""
    monkeypatch.setattr(record_batch, "re", None)
    data = batch([(0, None, None, [("n" * 512, b"")])], 0)
    (found,) = RecordReader().read(Partition(*TP), 0, data, DefaultRecordBatch.HEADER_STRUCT.size, 1)
    assert found.headers == (("n" * 512, b""),)


def test_a_length_that_is_no_length_is_the_same_error_before_and_after_a_layout_is_known() -> None:
    def record(value_size: bytes, rest: bytes) -> bytes:
        body = b"\0\0\0\2k" + value_size + rest
        return _varint(len(body) + 2**70 if len(value_size) > 1 else len(body)) + body

    block, huge = b"\2\2a\2" + b"1", _varint(2**70)
    reader = RecordReader()
    for _ in range(2):
        with pytest.raises(ValueError, match="goes beyond"):
            reader.read(Partition(*TP), 0, record(huge, block), 0, 1)
        reader.read(Partition(*TP), 0, record(b"\0", block), 0, 1)


def _varint(number: int) -> bytes:
    number, out = number << 1, b""
    while number > 127:
        number, out = number >> 7, out + bytes([number & 127 | 128])
    return out + bytes([number])


def test_the_first_header_of_a_name_is_found_in_both_kinds_of_headers() -> None:
    headers: Any = [("a", b"1"), ("b", b"2"), ("a", b"3")]
    data, begin = batch([(0, None, None, headers)] * 2, 0), DefaultRecordBatch.HEADER_STRUCT.size
    new, known = RecordReader().read(Partition(*TP), 0, data, begin, 2)
    for record in (new, known):
        assert [first_header(record.headers, name) for name in "abc"] == [b"1", b"2", None]
        assert (len(record.headers), record.headers[2], hash(record.headers)) == (
            3,
            ("a", b"3"),
            hash(tuple(headers)),
        )
    assert type(new.headers) is not type(known.headers)
    assert repr(known.headers) == repr(new.headers)


def test_a_broken_batch_is_told_after_the_good_ones_and_ends_the_fetch() -> None:
    good, bad = (
        batch([(0, b"k", b"1", []), (0, b"k", b"2", [])], 0),
        bytearray(batch([(0, b"k", b"3", [])], 2)),
    )
    bad[-3] ^= 1
    ours = fetched(_PartitionRecords, good + bytes(bad))
    assert [r.value for r in ours.take(5)] == [b"1", b"2"]
    assert ours.next_fetch_offset == 2
    with pytest.raises(CorruptRecordError, match="offset 2 failed crc"):
        ours.take(5)
    assert not ours  # the client goes on to the next fetch instead of asking this one for ever


def test_a_batch_that_is_whole_and_makes_no_sense_is_told() -> None:
    head = DefaultRecordBatch.HEADER_STRUCT.size
    written, body = batch([(0, b"k", bytes(500), [])], 0, GZIP), gzip.compress(b"nonsense")
    data = written[:8] + (head - 12 + len(body)).to_bytes(4, "big") + written[12:head] + body
    with pytest.raises(CorruptRecordError, match=r"batch at offset 0 of .*'t', number=3"):
        fetched(_PartitionRecords, data, check_crcs=False).take(1)


def test_what_an_aborted_transaction_wrote_is_left_out() -> None:
    producer = {"transactional": True, "producer_id": 7, "producer_epoch": 0, "base_sequence": 0}
    data = batch([(0, None, b"no", [])], 0, **producer) + batch([(0, None, b"yes", [])], 1)
    aborted = [type("Aborted", (), {"producer_id": 7, "first_offset": 0})()]
    ours = fetched(
        _PartitionRecords, data, isolation_level=IsolationLevel.READ_COMMITTED, aborted_transactions=aborted
    )
    assert [(r.offset, r.value) for r in ours.take(5)] == [(1, b"yes")]


class HandsOutBatches(Fetcher.PartitionRecords):  # type: ignore[misc]
    """A client whose next version hands out whole batches of records."""

    def take(self, n: int | None = None) -> list[Any]:
        return [super().take(n)]


def test_our_reader_is_used_only_with_internals_it_was_written_for() -> None:
    with pytest.raises((AttributeError, TypeError, ValueError)):
        seams.verified(object, memory_records)
    with pytest.raises((AttributeError, TypeError, ValueError)):
        seams.verified(HandsOutBatches, memory_records)
    assert seams.batch_reader() is not None


@pytest.mark.parametrize("reader", [Fetcher.PartitionRecords, _PartitionRecords])
def test_whoever_reads_the_port_gets_our_records(reader: type[Any]) -> None:
    data = batch([(1, b"k", None, [("h", None)]), (2, None, b"v", [])], 0)
    assert seams.records_of(Partition(*TP), fetched(reader, data).take(BIG)) == [
        Record(Partition(*TP), 0, b"k", b"", (("h", b""),)),
        Record(Partition(*TP), 1, None, b"v"),
    ]
