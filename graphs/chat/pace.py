"""How fast requests leave: a rate, a pause that a server asked for, and how many are under way at once. Safe
for threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from streams.clock import Clock, SystemClock


class Pace:
    """Spaces requests evenly, `requests_per_minute` at most, with at most `max_concurrency` under way.

    >>> from datetime import UTC, datetime
    >>> from streams.clock import HandClock
    >>> clock = HandClock(datetime(2026, 11, 1, tzinfo=UTC))
    >>> pace = Pace(max_concurrency=2, requests_per_minute=60, clock=clock)
    >>> for _ in range(3):
    ...     with pace.turn():
    ...         pass
    >>> clock.now().second
    2
    """

    def __init__(
        self, max_concurrency: int, requests_per_minute: float | None = None, clock: Clock | None = None
    ) -> None:
        self._clock = clock or SystemClock()
        self._gap = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._slots = threading.BoundedSemaphore(max_concurrency)
        self._lock = threading.Lock()
        self._next = self._clock.monotonic()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for a slot and for the next free moment."""
        with self._slots:
            while (wait_s := self._reserve()) > 0:
                self._clock.sleep(wait_s)
            yield

    def pause(self, seconds: float) -> None:
        """Let nobody start for so long: a server that limits one request limits the others too."""
        with self._lock:
            self._next = max(self._next, self._clock.monotonic() + seconds)

    def _reserve(self) -> float:
        """Take the next moment when it has come, else say how long to wait for it, in seconds."""
        with self._lock:
            now = self._clock.monotonic()
            if now < self._next:
                return self._next - now
            self._next = max(self._next, now - self._gap) + self._gap
            return 0.0
