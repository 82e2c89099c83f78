"""What a curation is given and what it gives back. Everything that shapes the data is in the plan, which is
checkpointed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property

from pydantic import Field

from agent.budget import Usage
from agent.items import Example, Frozen, PoolItem
from agent.plan import DataPlan, StrategySettings
from agent.replay import DEFAULT_REPLAY, ReplaySettings, Reservoir
from graphs.counts import CallCounts
from graphs.curate.settings import DuplicateSettings
from graphs.errors import GraphsError
from graphs.teacher import Teacher
from streams.crash import CrashPoint, no_crash

STEPS = ("write", "sieve", "rewrite", "solve", "filter", "assemble")
CRASH_POINTS = tuple(f"curate.{step}.{when}" for step in STEPS for when in ("start", "end"))


class CurationError(GraphsError):
    """A data set cannot be made; the message says for which round or skill, and what to do."""


class NothingCurated(CurationError):
    """Every candidate was dropped; training on replay alone would teach nothing. `report` says why."""

    def __init__(self, round_id: str, report: CurationReport) -> None:
        self.report = report
        super().__init__(f"round {round_id}: no target example is left ({report.reasons})")


class PlanChanged(CurationError):
    """An interrupted round was given another plan than the one it began with. Use a new round id for a new
    plan."""


class AwaitingApproval(CurationError):
    """A person has not decided on the data yet; call again later, which costs nothing."""


class DataRejected(CurationError):
    """A person has decided that the data is not to be trained on."""


class CurationPlan(Frozen):
    """What to curate: a data plan, a seed, and the rules. Equal plans on equal inputs give equal data sets.

    `pairs` bounds the target examples; None: as many as the data plan comes to. Of `strategy` the graph uses
    how often a new question is solved and how many of its solutions must agree (STAT, arXiv 2510.10023,
    section 3.3: 2 of 3). `per_task` calls of the teacher make one checkpointed task: what a crash or a retry
    repeats at most.
    """

    seed: int
    data: DataPlan
    pairs: int | None = Field(default=None, ge=1)
    strategy: StrategySettings = StrategySettings()
    duplicates: DuplicateSettings = DuplicateSettings()
    replay: ReplaySettings = DEFAULT_REPLAY
    per_task: int = Field(default=1, ge=1)


class CurationReport(Frozen):
    """What became of the candidates. `accepted` counts target examples per skill (per part of the plan where
    they were drawn for none), `dropped` candidates per reason.

    Reasons: `duplicate-exact`, `duplicate-near`, `contaminated-exact`, `contaminated-near`, `unsolved`,
    `inconsistent` and `without solution` count questions; `writing failed` and `rewriting failed` calls;
    `rewritten-answer-changed` and `rewritten-repeat` solutions; `surplus` counts examples beyond the request,
    `contaminated-replay` replay examples.
    """

    requested: Mapping[str, int]
    accepted: Mapping[str, int]
    replay: int
    dropped: Mapping[str, int]
    usage: Usage

    @property
    def shortfall(self) -> dict[str, int]:
        """How many examples each skill is short of its request."""
        short = {skill: count - self.accepted.get(skill, 0) for skill, count in self.requested.items()}
        return {skill: count for skill, count in short.items() if count > 0}

    @property
    def reasons(self) -> str:
        """Why candidates were dropped, in words."""
        told = ", ".join(f"{reason} {count}" for reason, count in sorted(self.dropped.items()))
        return told or "nothing was planned, or the teacher wrote nothing"


class Curation(Frozen):
    """The data set of one round: target examples first, then replay, each with where it came from."""

    round_id: str
    examples: tuple[Example, ...]
    report: CurationReport


class Approval(Frozen):
    """What a person decided on a round's data, and why."""

    approved: bool
    reason: str = ""


Approve = Callable[[Curation], Approval | None]
"""A person's decision on a data set; None while there is none."""


def no_opinion(expected: str, answer: str) -> bool | None:
    """A task without grading of its own: answers are compared in their canonical form only."""
    return None


def unwatched(kind: str, done: int, total: int) -> None:
    """A progress listener that does nothing."""


@dataclass(frozen=True)
class ReplaySource:
    """What may be replayed: `reservoir` names examples of earlier rounds by skill, `earlier` holds them by
    id, `original` is old data."""

    reservoir: Reservoir = field(default_factory=dict)
    earlier: Mapping[str, Example] = field(default_factory=dict)
    original: Sequence[PoolItem] = ()


@dataclass(frozen=True)
class CurateContext:
    """What the graph works with. A resumed round must be given the same pool, held-out questions and replay.

    `used_questions` are texts that were synthesized before. `grade(expected, answer)` is the task's own
    grading: whether a worked answer ends in the expected one, None where it cannot tell. `approve` is asked
    for a person's decision on the data where one is needed. `progress` is told of each call of the teacher:
    kind, calls done, calls in all. `gate` and `tally` are set by `run_curation`.
    """

    teacher: Teacher
    pool: Sequence[PoolItem]
    held_out: Sequence[str]
    used_questions: Sequence[str] = ()
    replay: ReplaySource = field(default_factory=ReplaySource)
    grade: Callable[[str, str], bool | None] = no_opinion
    approve: Approve | None = None
    progress: Callable[[str, int, int], None] = unwatched
    crash: CrashPoint = no_crash
    gate: AbstractContextManager[object] = field(default_factory=nullcontext, repr=False)
    tally: CallCounts = field(default_factory=lambda: CallCounts(unwatched), repr=False)

    @cached_property
    def items(self) -> Mapping[str, PoolItem]:
        """The pool by item id."""
        return {item.item_id: item for item in self.pool}
