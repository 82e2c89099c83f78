"""Reading a file of lines that may grow, be cut or be rewritten between two readings: from where the last one
ended, if everything before that is still the same, byte by byte.

Checking costs one reading of what is done, at the disk's speed. A line counts when it has ended; the rest of
a file, whose line somebody may still be writing, waits.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from streams.files import read_json, write_json


class FileLine(NamedTuple):
    """A line as read: None in place of one that is too long. `ended`: with a line break."""

    text: bytes | None
    ended: bool


class ResumedFile:
    """An open file, read by `lines`; `take` counts the line just read in, `save` remembers in `folder` how
    far it is.

    A file of the same path that is read with another `mark` begins anew; without `folder` nothing is
    remembered. `offset` and `number` are bytes and lines taken; `longest` is the most bytes that a line may
    have. About 100 bytes of memory a line are needed, to know its copies.
    """

    def __init__(self, file: BinaryIO, path: Path, folder: Path | None, longest: int, mark: str = "") -> None:
        name = hashlib.sha256(f"{path.resolve()}{mark}".encode()).hexdigest()[:16]
        self._kept = folder / "ingest" / f"{name}.json" if folder else None
        self._file, self._longest = file, longest
        self.size = os.fstat(file.fileno()).st_size
        self._begin()
        saved = (self._kept and read_json(self._kept)) or {}
        if not self._resume(saved):
            self._begin()
        file.seek(self.offset)

    def _begin(self) -> None:
        self.offset = self.number = 0
        self._digest, self._copies = hashlib.sha256(), Counter[bytes]()
        self._file.seek(0)

    def _resume(self, saved: dict[str, object]) -> bool:
        """Read what was done once more; whether it is unchanged. A position of an earlier version knew the
        first line only, and is believed."""
        done = saved.get("bytes", 0)
        head = hashlib.sha256(self._file.read(4096).split(b"\n", 1)[0]).hexdigest()
        self._file.seek(0)
        if not isinstance(done, int) or (saved and saved.get("head", head) != head):
            return False
        while self.offset < done and (line := self._file.readline(min(self._longest, done - self.offset))):
            self.take(line)
        self.number = int(str(saved.get("lines", 0)))
        return (
            self.offset == done and saved.get("sha256", self._digest.hexdigest()) == self._digest.hexdigest()
        )

    def lines(self) -> Iterator[FileLine]:
        """The lines from here on; the next one is read after the last one was taken."""
        while line := self._file.readline(self._longest):
            ended = line.endswith(b"\n")
            if ended or len(line) < self._longest:
                yield FileLine(line, ended)
                continue
            ahead = self._digest.copy()  # of a line that is too long, only the digest is kept
            ahead.update(line)
            size = len(line)
            while not ended and (rest := self._file.readline(self._longest)):
                ended = rest.endswith(b"\n")
                ahead.update(rest)
                size += len(rest)
            self._ahead = ahead, size
            yield FileLine(None, ended)

    def take(self, line: bytes | None) -> None:
        """Count a line in, as the beginning of what is done."""
        if line is None:
            self._digest, size = self._ahead
            self.offset += size
        else:
            self._digest.update(line)
            self.offset += len(line)
            self._copies[_mark(line)] += 1
        self.number += 1

    def copies(self, line: bytes) -> int:
        """How many lines with the same content have been taken."""
        return self._copies[_mark(line)]

    def save(self) -> None:
        """Remember how far the file is taken."""
        position = {"bytes": self.offset, "lines": self.number, "sha256": self._digest.hexdigest()}
        if self._kept is not None:
            write_json(self._kept, position)


def _mark(line: bytes) -> bytes:
    return hashlib.blake2b(line.strip(), digest_size=8).digest()
