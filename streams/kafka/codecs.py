"""Compressed record batches, unpacked up to a limit: a few kilobytes may hold gigabytes of zeros.

Kafka's numbers of the codecs: 1 gzip, 2 snappy (raw or in xerial's blocks), 3 lz4, 4 zstd (KIP-110).
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Mapping
from importlib import import_module

MAX_BATCH_BYTES = 64 * 1_048_576
NAMES: Mapping[int, str] = {0: "none", 1: "gzip", 2: "snappy", 3: "lz4", 4: "zstd"}
MODULES: Mapping[int, str] = {2: "snappy", 3: "lz4.frame", 4: "zstandard"}
_XERIAL = b"\x82SNAPPY\x00"


class BatchTooLarge(ValueError):
    """A batch that unpacks to more than the limit; none of it has been kept."""


class CodecMissing(ImportError):
    """The package of a codec is not installed."""


def missing_codecs() -> list[str]:
    """The names of the codecs whose packages are not installed."""
    missing = []
    for codec, module in MODULES.items():
        try:
            import_module(module)
        except ImportError:
            missing.append(NAMES[codec])
    return missing


def decompress(codec: int, data: bytes, limit: int = MAX_BATCH_BYTES) -> bytes:
    """The content of a batch, `limit` bytes at most.

    Raises `BatchTooLarge`, `CodecMissing`, and `ValueError` for bytes that are not of this codec.

    >>> decompress(1, zlib.compress(b"abc", wbits=31)), decompress(0, b"abc")
    (b'abc', b'abc')
    """
    if codec == 0:
        return data
    if codec not in _UNPACK:
        raise ValueError(f"unknown codec {codec}")
    try:
        unpacked = _UNPACK[codec](data, limit)
    except ImportError as exc:
        raise CodecMissing(
            f"{NAMES[codec]} needs the package {exc.name}; pip install 'skillloop[kafka]'"
        ) from exc
    except ValueError:  # a `BatchTooLarge` too
        raise
    except Exception as exc:  # each package has errors of its own
        raise ValueError(f"not {NAMES[codec]}: {type(exc).__name__}: {exc}") from exc
    if len(unpacked) > limit:
        raise BatchTooLarge(f"more than {limit} bytes of {NAMES[codec]}-compressed records in one batch")
    return unpacked


def _gzip(data: bytes, limit: int) -> bytes:
    return zlib.decompressobj(wbits=31).decompress(data, limit + 1)


def _lz4(data: bytes, limit: int) -> bytes:
    unpacked: bytes = import_module("lz4.frame").LZ4FrameDecompressor().decompress(data, limit + 1)
    return unpacked


def _zstd(data: bytes, limit: int) -> bytes:
    decompressor = import_module("zstandard").ZstdDecompressor()
    with decompressor.stream_reader(io.BytesIO(data), read_across_frames=True) as reader:
        unpacked: bytes = reader.read(limit + 1)
    return unpacked


def _snappy(data: bytes, limit: int) -> bytes:
    """Raw, or in blocks; every block states its unpacked size, which is checked before it is unpacked."""
    unpack: Callable[[bytes], bytes] = import_module("snappy").decompress
    blocks = _blocks(data) if data.startswith(_XERIAL) else [data]
    if sum(map(_stated_size, blocks)) > limit:
        raise BatchTooLarge(f"more than {limit} bytes of snappy-compressed records in one batch")
    return b"".join(map(unpack, blocks))


def _blocks(data: bytes) -> list[bytes]:
    blocks, position = [], 16  # behind xerial's header
    while position < len(data):
        (size,) = struct.unpack_from(">i", data, position)
        if size < 0:
            raise ValueError(f"a snappy block has the length {size}")
        blocks.append(data[position + 4 : position + 4 + size])
        position += 4 + size
    return blocks


def _stated_size(block: bytes) -> int:
    size = 0
    for at, byte in enumerate(block[:5]):
        size |= (byte & 127) << 7 * at
        if byte < 128:
            return size
    raise ValueError("a snappy block does not state its size")


_UNPACK: Mapping[int, Callable[[bytes, int], bytes]] = {1: _gzip, 2: _snappy, 3: _lz4, 4: _zstd}
