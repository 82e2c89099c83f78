"""For scripts that kill what they test: work in forked processes, so that everything is imported once."""

from __future__ import annotations

import json
import os
import signal
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.warm import run_warm


def in_child(work: Callable[[], None]) -> int:
    """Run `work` in a forked process; its wait status."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitpid(pid, 0)[1]


def was_killed(status: int) -> bool:
    """Whether a process with this wait status ended by SIGKILL."""
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def reports(script: Path, *arguments: object) -> Mapping[str, Mapping[str, Any]]:
    """What such a script prints, a line of JSON per crash point, by crash point."""
    done = run_warm(script, *arguments)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    return {report["spec"]: report for report in map(json.loads, done.stdout.splitlines())}
