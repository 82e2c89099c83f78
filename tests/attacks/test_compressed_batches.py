"""Attacks: batches in any codec, and batches that unpack to far more than they weigh."""

from __future__ import annotations

import resource
import zlib
from typing import Any

import lz4.frame
import pytest
import snappy
import zstandard
from kafka import TopicPartition
from kafka.codec import snappy_encode
from kafka.record.memory_records import MemoryRecords, MemoryRecordsBuilder

from streams.codec import Codec, DecodeError
from streams.kafka import seams
from streams.kafka.codecs import BatchTooLarge, decompress, missing_codecs
from streams.log import UNREADABLE

TP = TopicPartition("student-outputs", 3)
PACK: dict[int, Any] = {
    1: lambda data: zlib.compress(data, wbits=31),
    2: snappy_encode,
    3: lz4.frame.compress,
    4: zstandard.ZstdCompressor().compress,
}


@pytest.mark.parametrize("codec", [1, 2, 3, 4])
def test_every_codec_unpacks_up_to_its_limit(codec: int) -> None:
    data = b"a text that repeats, " * 10_000
    packed = PACK[codec](data)
    assert decompress(codec, packed) == data
    assert decompress(codec, packed, limit=len(data)) == data
    with pytest.raises(BatchTooLarge):
        decompress(codec, packed, limit=len(data) - 1)
    with pytest.raises(ValueError, match=r"not |snappy"):
        decompress(codec, b"\x82SNAPPY\x00 is not a batch of any kind")


def test_raw_snappy_states_its_size_before_it_is_unpacked() -> None:
    assert decompress(2, snappy.compress(b"abc" * 99)) == b"abc" * 99
    with pytest.raises(BatchTooLarge):
        decompress(2, b"\xff\xff\xff\xff\x0f" + b"x" * 20)


def test_no_codec_is_missing_with_the_kafka_extra() -> None:
    assert missing_codecs() == []


@pytest.mark.parametrize("codec", [1, 2, 3, 4])
def test_a_bomb_becomes_one_record_that_says_so_and_the_next_batch_is_read(codec: int) -> None:
    data = b""
    for offset, value in ((0, bytes(96 * 2**20)), (1, b"good")):
        builder = MemoryRecordsBuilder(magic=2, compression_type=codec, batch_size=2**27)
        builder.append(1, None, value, [])
        builder.close()
        data += offset.to_bytes(8, "big") + bytes(builder.buffer())[8:]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    reader = seams.batch_reader()
    assert reader is not None
    bomb, good = reader(0, TP, MemoryRecords(data)).take(5)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150 * 1024  # KiB
    assert (bomb.offset, good.offset, good.value) == (0, 1, b"good")
    assert b"offsets 0 to 0" in dict(bomb.headers)[UNREADABLE]
    with pytest.raises(DecodeError, match="67108864") as caught:
        Codec().decode(bomb)
    assert caught.value.reason == "unreadable"


def test_a_million_empty_headers_are_read_in_linear_time() -> None:
    builder = MemoryRecordsBuilder(magic=2, compression_type=1, batch_size=2**27)
    builder.append(1, None, b"v", [("", b"")] * 1_000_000)
    builder.close()
    reader = seams.batch_reader()
    assert reader is not None
    (record,) = reader(0, TP, MemoryRecords(bytes(builder.buffer()))).take(5)
    assert len(record.headers) == 1_000_000
