"""The spool: what the gateway has captured and the event log has not taken yet, on the local disk.

1. A line is written (`append`) before its answer's last byte goes to the user: a gateway that is killed
   keeps what it acknowledged. (It is in the page cache, not synced: a machine that loses power may lose the
   lines of its last seconds.)
2. The shipper reads lines, appends them to the log, and only then moves the position: a crash repeats lines,
   whose ids the store knows.
3. A spool belongs to one process, which holds its lock. Those of processes that are gone are adopted by the
   next gateway that starts in this folder.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import shutil
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from streams.files import read_json, write_json

logger = logging.getLogger(__name__)

SEGMENT_BYTES = 16 * 2**20
POSITION = "position.json"
LOCK = "lock"
_TRIES = 3


class Mark(NamedTuple):
    """A place in a spool: a segment's number and bytes into it."""

    segment: int = 1
    offset: int = 0


class SpoolLine(NamedTuple):
    """A whole line, and the place after it."""

    data: bytes
    after: Mark


def _name() -> str:
    return f"{os.getpid()}-{secrets.token_hex(4)}"


def _locked(folder: Path) -> int:
    """The descriptor of a spool's lock, held until it is closed; -1 where another process holds it."""
    lock = os.open(folder / LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return -1
    return lock


def _segment(folder: Path, number: int) -> Path:
    return folder / f"{number:08}.jsonl"


class Spool:
    """One process's spool. `append` never raises and never waits for another thread's work on the disk; lines
    that the disk does not take are kept in a bounded memory and written later, or counted in `lost`."""

    def __init__(self, root: Path, limit_bytes: int, queue: int) -> None:
        self.root = root
        self.folder = root / _name()
        self._limit, self._queue = limit_bytes, queue
        self._segment_bytes = min(SEGMENT_BYTES, max(1, limit_bytes // 4))
        self._waiting: deque[bytes] = deque()
        self._writing = threading.Lock()
        self._file = -1
        self._number, self._size, self._total = 0, 0, 0
        self._torn = self._full = False
        self.lost = self.removed = 0
        self._lock = -1
        for _ in range(_TRIES):
            self._open()
            if self._lock >= 0:
                break

    def append(self, line: bytes) -> bool:
        """Keep a line (without its end), on the disk or else in memory; False: it is lost."""
        with self._writing:
            if len(self._waiting) >= self._queue:
                self.lost += 1
                return False
            self._waiting.append(line)
            self._flush()
            return True

    @property
    def in_memory(self) -> int:
        """Lines that the disk does not take."""
        return len(self._waiting)

    def from_memory(self, most: int, ship: Callable[[Sequence[bytes]], None]) -> None:
        """Let `ship` take lines that the disk does not; where it raises they are kept."""
        with self._writing:
            lines = [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]
        try:
            ship(lines)
        except BaseException:
            with self._writing:
                self._waiting.extendleft(reversed(lines))
            raise

    def give_up(self) -> int:
        """Count what is still in memory as lost."""
        with self._writing:
            left = len(self._waiting)
            self._waiting.clear()
            self.lost += left
        return left

    def flush(self) -> bool:
        """Write what the disk did not take before; whether nothing is left in memory."""
        with self._writing:
            self._look()
            return self._flush()

    def shrink(self, size: int) -> None:
        """Segments of `size` bytes were shipped and removed."""
        with self._writing:
            self._total -= size

    @property
    def number(self) -> int:
        """The segment that is being written."""
        return self._number

    def close(self) -> None:
        """Let go; a folder in which nothing is left is removed."""
        with self._writing:
            self._flush()
            try:
                empty = not self._waiting and is_drained(self.folder)
            except OSError:
                empty = False
            for descriptor in (self._file, self._lock):
                if descriptor >= 0:
                    os.close(descriptor)
            self._file = self._lock = -1
        if empty:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _look(self) -> None:
        """Begin anew where somebody removed the folder: what is written to it would never be found."""
        if self._file < 0 or os.fstat(self._file).st_nlink:
            return
        logger.error("the spool %s was removed: a new one is made, lines may be lost", self.folder)
        for descriptor in (self._file, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._file = self._lock = -1
        self._total = 0
        self.removed += 1

    def _flush(self) -> bool:
        while self._waiting:
            try:
                self._write(self._waiting[0])
            except OSError as exc:
                if not self._full:  # once, not at each answer
                    logger.warning("the spool %s takes nothing, answers wait in memory: %s", self.folder, exc)
                self._full = True
                return False
            self._full = False
            self._waiting.popleft()
        return True

    def _write(self, line: bytes) -> None:
        if self._file < 0 or self._lock < 0:
            self._open()
        if self._total + len(line) > self._limit:
            raise OSError(f"it holds {self._total} bytes, at most {self._limit} are allowed")
        if self._size >= self._segment_bytes:
            self._next_segment()
        data = (b"\n" if self._torn else b"") + line + b"\n"
        written = os.write(self._file, data)
        self._size += written
        self._total += written
        self._torn = written < len(data)
        if self._torn:
            raise OSError("the disk took part of a line")

    def _open(self) -> None:
        try:
            if self._lock < 0:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._lock = _locked(self.folder)
            if self._lock < 0:  # another gateway took the new folder for one that was left behind
                self.folder = self.root / _name()
                raise OSError("its folder was taken")
            if self._file < 0:
                self._next_segment()
        except OSError as exc:
            logger.warning("cannot open the spool %s: %s", self.folder, exc)

    def _next_segment(self) -> None:
        flags = os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
        opened = os.open(_segment(self.folder, self._number + 1), flags, 0o600)
        if self._file >= 0:
            os.close(self._file)
        self._file, self._number, self._size, self._torn = opened, self._number + 1, 0, False


def position(folder: Path) -> Mark:
    """How far a spool has been shipped; its beginning where that is unreadable, since lines count once."""
    saved = read_json(folder / POSITION) or {}
    try:
        return Mark(int(saved["segment"]), int(saved["offset"]))
    except (TypeError, KeyError, ValueError, OverflowError):
        return Mark()


def save_position(folder: Path, mark: Mark) -> int:
    """Everything before `mark` is in the log: remove whole segments, which makes room on a full disk, and
    remember it; returns the bytes removed. Where it cannot be written, a crash repeats lines."""
    removed = 0
    for path in segments(folder):
        if int(path.stem) < mark.segment:
            removed += path.stat().st_size
            path.unlink()
    try:
        write_json(folder / POSITION, mark._asdict())
    except OSError as exc:
        logger.warning("how far the spool %s was shipped cannot be written: %s", folder, exc)
    return removed


def segments(folder: Path) -> list[Path]:
    """A spool's segments, oldest first."""
    return sorted(folder.glob("????????.jsonl"))


def read_lines(folder: Path, mark: Mark) -> Iterator[SpoolLine]:
    """The whole lines after `mark`. One without its end is still being written, or was when its process was
    killed: it was never acknowledged."""
    for path in segments(folder):
        number = int(path.stem)
        if number < mark.segment:
            continue
        offset = mark.offset if number == mark.segment else 0
        with path.open("rb") as file:
            file.seek(offset)
            for data in file:
                if not data.endswith(b"\n"):
                    break
                offset += len(data)
                yield SpoolLine(data[:-1], Mark(number, offset))


def is_drained(folder: Path) -> bool:
    """Whether a spool has no line left to ship."""
    return next(read_lines(folder, position(folder)), None) is None


def adopt(root: Path) -> Iterator[tuple[Path, int]]:
    """Spools under `root` whose process is gone: the folder and the descriptor of its lock, now ours."""
    for folder in sorted(path for path in root.glob("*-*") if path.is_dir()):
        try:
            lock = _locked(folder)
        except OSError:
            continue  # it was removed meanwhile
        if lock >= 0:
            yield folder, lock
