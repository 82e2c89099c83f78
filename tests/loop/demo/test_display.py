"""What the demo shows, on a terminal and in a file."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from loop.demo.display import Display


@pytest.mark.parametrize("terminal", [True, False])
def test_what_happened_stays_on_the_screen(terminal: bool) -> None:
    written = io.StringIO()
    console = Console(force_terminal=terminal, file=written, width=120, height=40)
    with Display(console, 100) as display:
        display.answered(50, "shift 1")
        display("training", {"round_id": "r", "step": 3, "steps": 10, "loss": 0.5})
        display("rejected", {"round_id": "demo-r001"})
        display("an event nobody shows", {})
    text = written.getvalue()
    assert "question 50: the traffic is now 'shift 1'" in text.replace("\x1b[1m", "").replace("\x1b[0m", "")
    assert text.rstrip().replace("\x1b[0m", "").endswith("demo-r001: rejected, the champion stays")
