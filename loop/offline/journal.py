"""Work done in many pieces at once, and the journal of what models in this process made: each finished job is
one line of a file, and a restart does only what is missing. What a teacher said is not in it: that is in the
reply cache (`graphs.chat.cache`).

1. The key of a job is a hash of everything its result depends on.
2. A line is written with one `write` after the job; a line that a kill cut short is dropped when the file is
   opened again.
3. Results are looked up by key, so the order in which jobs end changes nothing.

`ConfigError` and `STOPS_THE_BATCH` (`graphs.monitor.diagnose`) stop all work: they say nothing about the
piece at hand, and running the command again resumes. Any other error belongs to its piece; it is returned and
not remembered.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from graphs.monitor.diagnose import STOPS_THE_BATCH
from loop.config import ConfigError
from streams.crash import CrashPoint, no_crash

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


@dataclass(frozen=True)
class Failed:
    """A piece of work that ended in an error of its own."""

    error: str


class Journal:
    """The finished jobs of one kind. Safe for threads; close it, or use it as a context manager."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._known: dict[str, str] = {}
        self._lock = threading.Lock()
        self._written = False
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        self._load(path)

    def _load(self, path: Path) -> None:
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        os.ftruncate(self._file, whole)
        for line in data[:whole].splitlines():
            key, _, value = line.decode().partition(" ")
            self._known[key] = value

    def get(self, key: str) -> str | None:
        """The result of a job as JSON, or None."""
        return self._known.get(key)

    def put(self, key: str, value: str) -> None:
        """Remember a result; it survives the death of the process when this returns."""
        with self._lock:
            line = f"{key} {value}\n".encode()
            while line:
                line = line[os.write(self._file, line) :]
            self._known[key] = value
            self._written = True

    def __len__(self) -> int:
        return len(self._known)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._written:
            os.fsync(self._file)
        os.close(self._file)


@dataclass(frozen=True)
class Runner:
    """How work is done: how many pieces at once, who watches (`progress` is told of each end), where to crash
    in tests."""

    concurrency: int = 8
    progress: Callable[[str, int, int], None] = lambda kind, done, total: None
    crash: CrashPoint = no_crash

    def each(
        self, kind: str, items: Sequence[Item], work: Callable[[Item], Outcome]
    ) -> list[Outcome | Failed]:
        """The outcome of `work` on each item, in their order. Raises what stops all work, when what was under
        way ended."""
        outcomes: dict[int, Outcome | Failed] = {}
        self.progress(kind, 0, len(items))
        with ThreadPoolExecutor(self.concurrency, thread_name_prefix=kind) as pool:
            futures = {pool.submit(self._one, kind, work, item): at for at, item in enumerate(items)}
            try:
                for future in as_completed(futures):
                    failure = _failure(future)
                    outcomes[futures[future]] = future.result() if failure is None else failure
                    self.progress(kind, len(outcomes), len(items))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return [outcomes[at] for at in range(len(items))]

    def _one(self, kind: str, work: Callable[[Item], Outcome], item: Item) -> Outcome:
        self.crash(f"stat.{kind}.ask")
        return work(item)


def _failure(future: Future[Any]) -> Failed | None:
    error = future.exception()
    if error is None:
        return None
    if isinstance(error, (*STOPS_THE_BATCH, ConfigError)) or not isinstance(error, Exception):
        raise error
    return Failed(f"{type(error).__name__}: {error}")
