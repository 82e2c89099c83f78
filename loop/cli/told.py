"""What `up` and the workers say: every decision, round, verdict, promotion and wait as a log line, and a bar
for what takes long where there is a terminal."""

from __future__ import annotations

import logging
import re

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from agent.standing import Standing
from loop.demo.lines import round_line
from loop.tables import accuracy_line
from loop.workers.messages import (
    Advanced,
    Curating,
    Evaluating,
    Message,
    Postponed,
    Reading,
    Training,
    Watched,
)
from loop.workers.record import LoopRound

logger = logging.getLogger(__name__)
EVERY = 10
"""Without a terminal, training and reading are told so many times in all."""


class Told:
    """A listener that logs. `console` is standard error's, and shows `bars` if it is a terminal."""

    def __init__(self, console: Console, bars: bool = True) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
        self._bars = Progress(*columns, TimeRemainingColumn(), console=console, transient=True)
        self._shown = bars and console.is_terminal
        self._tasks: dict[str, TaskID] = {}
        self._tenths: dict[str, int] = {}
        self._decision = ""

    def __enter__(self) -> Told:
        if self._shown:
            self._bars.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._shown:
            self._bars.stop()

    def __call__(self, message: Message) -> None:
        match message:
            case Watched(standing):
                self._watched(standing)
            case Reading(done, total):
                self._progress("reading", done, total)
            case Curating(round_id, kind, done, total):
                self._progress(f"round {round_id}: {kind}", done, total)
            case Training(round_id, step, steps, loss):
                self._progress(f"round {round_id}: training", step, steps, f", loss {loss:.3f}")
            case Evaluating(who, items):
                _say(f"{who} answers {items} held-out items", event="evaluation", who=who, items=items)
            case Advanced(round_):
                _advanced(round_)
            case Postponed(round_id, failures, error, wait_s):
                _say(
                    f"round {round_id} failed for the {failures}. time and waits {wait_s:.0f} s: {error}",
                    logging.WARNING,
                    event="wait",
                    round=round_id,
                    failures=failures,
                    wait_s=wait_s,
                )

    def _watched(self, standing: Standing) -> None:
        """A decision is told when it changes; the figures in its reasons change with every answer."""
        decision = standing.decision
        first = next(iter(decision.reasons), "")
        key = re.sub(r"[0-9.,]+", "#", f"{standing.version} {decision.kind} {first}")
        if key != self._decision:
            self._decision = key
            _say(
                f"policy: {decision.kind}: {first.removeprefix(f'{decision.kind}: ')}"
                f" ({accuracy_line(standing.profile)})",
                event="decision",
                decision=decision.kind,
                reasons=decision.reasons,
                version=standing.version,
                answers=standing.profile.answers,
            )

    def _progress(self, what: str, done: int, total: int, more: str = "") -> None:
        if self._shown:
            if what not in self._tasks:
                self._tasks[what] = self._bars.add_task(what)
            self._bars.update(
                self._tasks[what], completed=done, total=total, visible=done < total, description=what + more
            )
            return
        tenth = EVERY * done // max(1, total)
        if tenth != self._tenths.get(what):
            self._tenths[what] = tenth
            _say(f"{what}: {done} of {total}{more}", event="progress", what=what, done=done, total=total)


def _advanced(round_: LoopRound) -> None:
    judged = round_.record.judged if round_.state in ("judged", "promoted") else None
    gate = {"gate_open": judged.verdict.promote, "version": judged.version} if judged else {}
    _say(f"round {round_line(round_)[0]}", event=round_.state, round=round_.round_id, **gate)


def _say(text: str, level: int = logging.INFO, **fields: object) -> None:
    logger.log(level, "%s", text, extra={"fields": fields})
