"""Progress of a durable graph: finished calls of the teacher. Apart from `graphs.durable`, so that a round's
record is read without LangGraph."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping


class CallCounts:
    """Counts finished calls of the teacher by kind and tells a listener: kind, calls done, calls in all. Safe
    for threads."""

    def __init__(
        self, listen: Callable[[str, int, int], None], done: Mapping[str, int] | None = None
    ) -> None:
        self._listen = listen
        self._done = Counter(done or {})
        self._lock = threading.Lock()

    def add(self, kind: str, total: int) -> None:
        """One more call of `total` is finished."""
        with self._lock:
            self._done[kind] += 1
            self._listen(kind, self._done[kind], total)
