"""Named crash points: places where tests kill a process to prove that nothing is lost or counted twice.

`SKILLLOOP_CRASH_AT="consume.before-commit:3"` kills the process (SIGKILL, no clean-up) the third time it gets
there.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable

ENVIRONMENT = "SKILLLOOP_CRASH_AT"
CrashPoint = Callable[[str], None]
"""Called with the name of the place that was reached."""


def no_crash(name: str) -> None:
    """The default: nothing happens."""


class Kill:
    """Kills this process the `count`-th time the point `name` is reached."""

    def __init__(self, spec: str) -> None:
        name, _, count = spec.partition(":")
        self.name = name
        self.count = int(count or 1)
        self._seen: Counter[str] = Counter()

    def __call__(self, name: str) -> None:
        self._seen[name] += 1
        if name == self.name and self._seen[name] == self.count:
            os.kill(os.getpid(), signal.SIGKILL)


def crash_point(spec: str | None) -> CrashPoint:
    """The crash point of a setting: `None` or empty never crashes."""
    return Kill(spec) if spec else no_crash


class Crashed(BaseException):
    """Raised by `Raise` in place of dying, where a test wants to go on in the same process."""


class Raise:
    """Raises `Crashed` the `count`-th time the point `name` is reached; the in-process twin of `Kill`."""

    def __init__(self, name: str, count: int = 1) -> None:
        self.name = name
        self.left = count

    def __call__(self, name: str) -> None:
        if name == self.name:
            self.left -= 1
            if self.left == 0:
                raise Crashed(name)
