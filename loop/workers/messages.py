"""What the workers tell whoever listens (the demo's display): a small union of frozen values, for display
only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from agent.standing import Standing
from loop.workers.record import LoopRound


@dataclass(frozen=True)
class Watched:
    """The policy has looked."""

    standing: Standing


@dataclass(frozen=True)
class Reading:
    """Of the records that waited at the start of a run that is to end, so many are in the profile."""

    done: int
    total: int


@dataclass(frozen=True)
class Curating:
    """The teacher's calls of one kind (write, rewrite, solve): done, and in all. Told in the graph's
    threads, one at a time."""

    round_id: str
    kind: str
    done: int
    total: int


@dataclass(frozen=True)
class Training:
    """Steps done, and the mean loss of the latest."""

    round_id: str
    step: int
    steps: int
    loss: float


@dataclass(frozen=True)
class Evaluating:
    """`who` is about to answer the gate's items."""

    who: str
    items: int


@dataclass(frozen=True)
class Advanced:
    """A round reached the state that it now has."""

    round_: LoopRound


@dataclass(frozen=True)
class Postponed:
    """A round's step failed for the `failures`-th time and is tried again in `wait_s` seconds."""

    round_id: str
    failures: int
    error: str
    wait_s: float


Message = Watched | Reading | Curating | Training | Evaluating | Advanced | Postponed


class Listener(Protocol):
    """Is told what happens, in the worker's thread; what it raises ends the step."""

    def __call__(self, message: Message) -> None: ...


def nobody(message: Message) -> None:
    """The default listener: progress is shown to nobody."""
