"""Stopping a worker: SIGINT or SIGTERM end it within ten seconds, whatever it waits for.

1. At once the stop is known: idle waits end, training saves a checkpoint at its next report and leaves, any
   other step may finish by itself.
2. After `GRACE_S` the main thread is interrupted in whatever it does (`WorkerStopped`): the step is given up
   as after a crash, which costs nothing but its unfinished part, and its round is given back.
3. After `LIMIT_S` the process ends: threads that wait for a server, or a library that waits for the network,
   cannot be interrupted. State survives that as it survives a kill.

A process that also serves users has longer: what is closed after `Stop.spare` is not interrupted, and the end
of 3 comes `drain_s` later.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
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
    process's end, with exit code 0. Main thread only.

    A thread acts on the signals, which Python writes to a socket wherever the main thread is. A handler would
    run in the main thread: not at all while that is in a library, and for good when it sets an event for
    whose lock that thread just holds.

    `drain_s`: how long the requests of users may take beyond that (`serving.gateway.serve.closing_s`).
    """

    def __init__(self, drain_s: float = 0.0) -> None:
        self.event = threading.Event()
        self._drain_s = drain_s
        self._spared = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._signals, told = socket.socketpair()
        told.setblocking(False)
        self._told = told
        self._wakeup = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
        for name in (signal.SIGINT, signal.SIGTERM):
            self._before[name] = signal.signal(name, lambda signum, frame: None)
        self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._interrupt)
        threading.Thread(target=self._attend, name="stop", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> bool:
        signal.set_wakeup_fd(self._wakeup)
        for name, handler in self._before.items():
            signal.signal(name, handler)
        self._told.close()
        if kind is not None and not issubclass(kind, (WorkerStopped, StopTraining)):
            return False
        if self.event.is_set():  # everything is closed; to take torch and its threads down takes seconds
            logging.shutdown()
            sys.stdout.flush()
            os._exit(0)
        return kind is not None

    def spare(self) -> None:
        """From here to the end of its block the main thread is not interrupted any more: what it closes has
        its own bounds."""
        self._spared = True

    def _attend(self) -> None:
        with self._signals as signals:  # open to the end: Python complains of signals that it cannot write
            while (byte := signals.recv(1)) and byte[0] not in (signal.SIGINT, signal.SIGTERM):
                pass
            if not byte:  # the block has ended
                return
            self.event.set()
            time.sleep(GRACE_S)
            os.kill(os.getpid(), signal.SIGALRM)
            time.sleep(LIMIT_S - GRACE_S + self._drain_s)
            _end_process(LIMIT_S + self._drain_s)

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:
        if not self._spared:
            raise WorkerStopped


def _end_process(waited_s: float) -> None:
    logger.warning("told to stop %g s ago and still waiting: ending this process, nothing is lost", waited_s)
    os._exit(0)
