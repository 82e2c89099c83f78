"""What happens to the workers of `benchmarks.hundred`: kills and freezes, where it hurts."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.hundred_crew import Crew
from loop.workers.record import LoopRound

KILL_MONITOR, FREEZE_MONITOR = 1_500, 3_000
"""After so many answers."""
SESSION_S = 8.0
"""Of the consumers: `log.kafka.session_timeout_s` in hundred.toml."""


@dataclass
class Faults:
    """Kills one holder of a round in each of the states `kills`, and one monitor; freezes the first worker
    that trains until its round is another's, and the other monitor until its partitions are."""

    crew: Crew
    lease_s: float
    kills: tuple[str, ...]
    killed: dict[str, str] = field(default_factory=dict)
    """State in which a worker was killed ("answers": a monitor) -> the worker."""
    frozen: dict[str, str] = field(default_factory=dict)
    """What was frozen: a round, or "answers" -> the worker."""
    continued: list[str] = field(default_factory=list)
    _since: float = 0.0
    _round: LoopRound | None = None

    @property
    def done(self) -> bool:
        """Whether everything planned has happened."""
        return len(self.continued) == 2 and set(self.killed) == {*self.kills, "answers"}

    def look(self, rounds: Sequence[LoopRound], sent: int) -> None:
        """Strike when the moment has come."""
        if sent > KILL_MONITOR and "answers" not in self.killed:
            self._strike("monitor-0", signal.SIGKILL)
            self.killed["answers"] = "monitor-0"
        if self._may_freeze() and sent > FREEZE_MONITOR and "answers" not in self.frozen:
            self._freeze("answers", "monitor-1")
        for round_ in rounds:
            holder = self.crew.of_owner(round_.owner) if round_.owner else None
            if holder is None:
                continue
            if round_.state == "curated" and self._may_freeze() and self._round is None:
                self._round = round_
                self._freeze(round_.round_id, holder)
            elif round_.state in self.kills and round_.state not in self.killed and round_.number > 1:
                self._strike(holder, signal.SIGKILL)
                self.killed[round_.state] = holder
        self._continue(rounds)

    def _may_freeze(self) -> bool:
        return len(self.frozen) == len(self.continued)

    def _strike(self, name: str, what: signal.Signals) -> None:
        self.crew.signal(name, what)

    def _freeze(self, what: str, name: str) -> None:
        self._strike(name, signal.SIGSTOP)
        self.frozen[what], self._since = name, time.monotonic()

    def _continue(self, rounds: Sequence[LoopRound]) -> None:
        """Continue what is frozen, once it is too late for it."""
        what = next((what for what in self.frozen if what not in self.continued), None)
        if what is None or time.monotonic() < self._since + self._too_late_s(what):
            return
        if what == "answers" or not self._still_holds(rounds):
            self._strike(self.frozen[what], signal.SIGCONT)
            self.continued.append(what)

    def _still_holds(self, rounds: Sequence[LoopRound]) -> bool:
        """Whether nobody has taken the frozen worker's round yet."""
        claims = [(round_.round_id, round_.fence) for round_ in rounds]
        return self._round is None or (self._round.round_id, self._round.fence) in claims

    def _too_late_s(self, what: str) -> float:
        return 2.0 * SESSION_S if what == "answers" else self.lease_s + 2.0
