"""A long-running command stops when it is asked to, wherever the signal finds it."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import signal, sys
from loop.stopping import Stop
calls = 0
def strike(frame, event, arg):
    global calls
    calls += 1
    if calls == {call}:
        sys.settrace(None)
        signal.raise_signal(signal.SIGTERM)
with Stop() as stop:
    sys.settrace(strike)
    stop.event.wait(20)
    sys.settrace(None)
    print("asked" if stop.event.is_set() else "not asked", flush=True)
"""


@pytest.mark.timeout(60)
@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_signal_inside_the_wait_ends_it(call: int) -> None:
    """SIGTERM at the beginning of the `call`-th function that the wait enters: one of them holds the lock
    that `Event.set` needs."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(call=call)], capture_output=True, text=True, timeout=15
    )
    assert (done.returncode, done.stdout) == (0, "asked\n"), done.stderr


LONG = """
import signal, time
from loop.stopping import Stop
with Stop():
    signal.raise_signal(signal.SIGTERM)
    time.sleep(20)
"""


@pytest.mark.timeout(60)
def test_a_step_that_does_not_end_is_interrupted_without_a_word() -> None:
    done = subprocess.run([sys.executable, "-c", LONG], capture_output=True, text=True, timeout=15)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
