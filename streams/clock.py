"""The clock port: the system's time, or one wound by hand for tests and simulations.

Wall-clock time is for what people read and for event time; it can be set back or forward. What is waited for
is measured by `monotonic`.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Clock(Protocol):
    """Wall-clock time (UTC), time that nobody sets, and waiting."""

    def now(self) -> datetime: ...

    def monotonic(self) -> float:
        """Seconds since some moment before this process began, the same for all processes of the machine
        until its next boot; setting the wall clock does not change it."""

    def sleep(self, seconds: float) -> None: ...


def since_boot() -> float:
    """Seconds since the machine was started, sleep included where the system tells."""
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boot is None else time.clock_gettime(boot)


def boot_id() -> str | None:
    """What this run of the machine is called; None where the system does not say."""
    try:
        return _BOOT_ID.read_text().strip() or None
    except OSError:
        return None


class SystemClock:
    """The real one."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return since_boot()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class HandClock:
    """Moves only when told to, or when somebody sleeps."""

    def __init__(self, start: datetime) -> None:
        self._now = start
        self._monotonic = start.timestamp()

    def now(self) -> datetime:
        return self._now

    def monotonic(self) -> float:
        return self._monotonic

    def sleep(self, seconds: float) -> None:
        self._now += timedelta(seconds=seconds)
        self._monotonic += seconds

    def set(self, seconds: float) -> None:
        """Move the wall clock alone, forward or back: somebody has set it."""
        self._now += timedelta(seconds=seconds)
