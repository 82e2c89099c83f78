"""A watchdog for calls that may never return: it ends the process, which is safe, since everything here
survives a kill."""

from __future__ import annotations

import faulthandler
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)
EXIT_STUCK = 75  # EX_TEMPFAIL: a supervisor should start the process again


def end_process(what: str, limit_s: float) -> None:
    """Log where every thread stands and exit with `EXIT_STUCK`. A stuck thread cannot be stopped in any
    gentler way."""
    logger.critical(
        "%s has not returned within %.0f s: ending this process; start it again, nothing is lost",
        what,
        limit_s,
    )
    faulthandler.dump_traceback(all_threads=True)
    os._exit(EXIT_STUCK)


class Watchdog:
    """Calls `on_stuck(what, limit_s)` from its own thread when a guarded block takes longer than `limit_s`
    seconds."""

    def __init__(
        self, what: str, limit_s: float, on_stuck: Callable[[str, float], None] = end_process
    ) -> None:
        self._what = what
        self._limit_s = limit_s
        self._on_stuck = on_stuck
        self._deadline: float | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=f"watchdog of {what}", daemon=True)
        self._thread.start()

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Watch one call."""
        self._deadline = time.monotonic() + self._limit_s
        try:
            yield
        finally:
            self._deadline = None

    def _watch(self) -> None:
        while not self._stop.wait(min(1.0, self._limit_s / 4)):
            deadline = self._deadline
            if deadline is not None and time.monotonic() > deadline:
                self._deadline = None
                self._on_stuck(self._what, self._limit_s)

    def close(self) -> None:
        """Stop watching."""
        self._stop.set()
        self._thread.join()
