"""Stopping a worker: SIGINT or SIGTERM end it within ten seconds, whatever it waits for.

1. At once the stop is known: idle waits end, training saves a checkpoint at its next report and leaves, any
   other step may finish by itself.
2. After `GRACE_S` the main thread is interrupted in whatever it does (`WorkerStopped`): the step is given up
   as after a crash, which costs nothing but its unfinished part, and its round is given back.
3. After `LIMIT_S` the process ends: threads that wait for a server, or a library that waits for the network,
   cannot be interrupted. State survives that as it survives a kill.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from training.trainer import StopTraining

logger = logging.getLogger(__name__)
GRACE_S = 4.0
LIMIT_S = 8.0


class WorkerStopped(BaseException):
    """The process has been told to stop and its main thread did not come to an end by itself."""


class Stop:
    """While it is entered, signals stop the process as described above; the end of its block is then the
    process's end, with exit code 0. Main thread only."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for name in (signal.SIGINT, signal.SIGTERM):
            self._before[name] = signal.signal(name, self._begin)
        self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._interrupt)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> bool:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for name, handler in self._before.items():
            signal.signal(name, handler)
        if kind is not None and not issubclass(kind, (WorkerStopped, StopTraining)):
            return False
        if self.event.is_set():  # everything is closed; to take torch and its threads down takes seconds
            logging.shutdown()
            sys.stdout.flush()
            os._exit(0)
        return kind is not None

    def _begin(self, signum: int, frame: FrameType | None) -> None:
        if self.event.is_set():
            return
        self.event.set()
        signal.setitimer(signal.ITIMER_REAL, GRACE_S)
        last = threading.Timer(LIMIT_S, _end_process)  # also ends a process whose threads do not
        last.daemon = True
        last.start()

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:
        raise WorkerStopped


def _end_process() -> None:
    logger.warning("told to stop %g s ago and still waiting: ending this process, nothing is lost", LIMIT_S)
    os._exit(0)
