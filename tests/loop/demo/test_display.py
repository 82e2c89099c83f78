"""What the demo shows, on a terminal and in a file."""

from __future__ import annotations

import io
from datetime import UTC, datetime

import pytest
from rich.console import Console

from agent.decision import Decision
from loop.demo.display import Display
from loop.workers.messages import Advanced, Evaluating, Postponed, Training
from loop.workers.record import Ended, LoopRound, Opened, Record, Trained
from streams.state.rounds import Round

OPENED = Opened(champion=1, at=datetime(2026, 1, 1, tzinfo=UTC), answers=0)
RECORD = Record(decision=Decision(kind="select", steps=10, reasons=("test",)), opened=OPENED)


def round_in(state: str, record: Record = RECORD) -> LoopRound:
    return Round("demo-r001", "demo", 1, state, None, record)


@pytest.mark.parametrize("terminal", [True, False])
def test_what_happened_stays_on_the_screen(terminal: bool) -> None:
    written = io.StringIO()
    console = Console(force_terminal=terminal, file=written, width=120, height=40)
    trained = Trained(adapter_sha256="a", tokens=70, loss=0.5, parent=1, too_long=3)
    with Display(console, 100) as display:
        display.answered(50, "shift 1")
        display(Training("demo-r001", step=3, steps=10, loss=0.5))
        display(Postponed("demo-r001", 1, "OSError: disk full", 5.0))
        display(Advanced(round_in("trained", RECORD.plus(trained))))
        display(Evaluating("version 1", 20))
        display(Advanced(round_in("failed", RECORD.plus(Ended(answers=1, error="gave up")))))
        display(Advanced(round_in("rejected")))
    text = written.getvalue().replace("\x1b[1m", "").replace("\x1b[0m", "")
    assert "question 50: the traffic is now 'shift 1'" in text
    assert "demo-r001: failure 1, tried again in 5 s: OSError: disk full" in text
    assert "demo-r001: trained 10 steps, 70 tokens, loss 0.500, 3 examples too long and left out" in text
    assert "evaluating version 1 on 20 held-out items" in text
    assert "demo-r001: failed: gave up" in text
    assert text.rstrip().endswith("demo-r001: rejected, the champion stays")
