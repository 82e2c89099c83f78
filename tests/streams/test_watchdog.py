"""The watchdog: a call that does not return ends the process, one that does is left alone."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

from streams.watchdog import EXIT_STUCK, Watchdog


def test_only_a_call_that_takes_too_long_is_reported() -> None:
    stuck = threading.Event()
    told: list[tuple[str, float]] = []
    dog = Watchdog("poll", 0.2, lambda what, limit: (told.append((what, limit)), stuck.set()) and None)
    for _ in range(5):
        with dog.guard():
            time.sleep(0.01)
    assert told == []
    with dog.guard():
        assert stuck.wait(5)
    assert told == [("poll", 0.2)]
    dog.close()


def test_a_stuck_process_ends_with_its_stacks_shown() -> None:
    program = (
        "import time; from streams.watchdog import Watchdog\n"
        "with Watchdog('poll', 0.2).guard(): time.sleep(60)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == EXIT_STUCK
    assert "poll has not returned within 0 s" in done.stderr
    assert "time.sleep" in done.stderr or "<string>" in done.stderr
