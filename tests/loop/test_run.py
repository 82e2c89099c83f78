"""A long-running command stops when it is asked to, wherever the signal finds it."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest

from loop.run import Stop


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """The process keeps its own handlers."""
    before = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)}
    yield
    for name, handler in before.items():
        signal.signal(name, handler)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("call", range(1, 8))
def test_a_signal_inside_the_wait_ends_it(call: int) -> None:
    stop, calls, tracing = Stop(), 0, sys.gettrace()

    def strike(frame: FrameType, event: str, arg: Any) -> None:
        """SIGTERM at the beginning of the `call`-th function that the wait enters, in whatever module."""
        nonlocal calls
        calls += 1
        if calls == call:
            sys.settrace(tracing)
            signal.raise_signal(signal.SIGTERM)

    sys.settrace(strike)
    try:
        stop.wait(0.3)
    finally:
        sys.settrace(tracing)
    assert stop.asked == (calls >= call)
