"""What a curation round is given and what it gives back. Everything that shapes the data is in the plan,
which is checkpointed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property

from pydantic import Field

from agent.budget import Usage
from agent.catalog import SkillMap
from agent.decision import SkillTarget, Teaching
from agent.items import Example, Frozen, PoolItem
from agent.replay import DEFAULT_REPLAY, ReplaySettings, Reservoir
from agent.synthesis import DEFAULT_SYNTHESIS, SynthesisSettings
from graphs.curate.duplicates import SameQuestion
from graphs.errors import GraphsError
from graphs.teacher import Teacher
from streams.crash import CrashPoint, no_crash

STEPS = ("select", "synthesize", "write", "deduplicate", "decontaminate", "solve", "filter", "plan")
CRASH_POINTS = tuple(f"curate.{step}.{when}" for step in STEPS for when in ("start", "end"))


class CurationError(GraphsError):
    """A data set cannot be made; the message says for which round or skill, and what to do."""


class EmptyPool(CurationError):
    """The pool has no question for a skill that is to be taught from it."""

    def __init__(self, skill: str) -> None:
        self.skill = skill
        super().__init__(
            f"the pool has no question that needs {skill!r}: "
            "label pool items with it, or leave the skill out of the round"
        )


class NothingCurated(CurationError):
    """Every candidate was dropped; training on replay alone would teach nothing. `report` says why."""

    def __init__(self, round_id: str, report: CurationReport) -> None:
        self.report = report
        reasons = (
            ", ".join(f"{reason} {count}" for reason, count in sorted(report.dropped.items()))
            or "the teacher wrote nothing"
        )
        super().__init__(f"round {round_id}: no target example is left ({reasons})")


class PlanChanged(CurationError):
    """An interrupted round was given another plan than the one it began with. Use a new round id for a new
    plan."""


class CurationPlan(Frozen):
    """What to curate: the decision's targets, a seed, and the rules. Equal plans on equal inputs give equal
    data sets.

    A new question is kept when at least `min_agreement` of its solutions have the same final answer (STAT,
    arXiv 2510.10023, section 3.3: 2 of 3). `duplicate` and `contamination` are Jaccard thresholds of
    `SameQuestion`; keeping held-out questions out is the stricter. `per_task` prompts or questions make one
    checkpointed task: what a crash or a retry repeats at most.
    """

    seed: int
    targets: tuple[SkillTarget, ...] = Field(min_length=1)
    synthesis: SynthesisSettings = DEFAULT_SYNTHESIS
    replay: ReplaySettings = DEFAULT_REPLAY
    min_agreement: int = Field(default=2, ge=1)
    duplicate: float = Field(default=0.7, gt=0, le=1)
    contamination: float = Field(default=0.6, gt=0, le=1)
    numbers_matter: bool = True
    per_task: int = Field(default=8, ge=1)

    def wanted(self, strategy: Teaching) -> dict[str, int]:
        """How many examples each skill gets in this way."""
        return {target.skill: target.examples for target in self.targets if target.strategy == strategy}

    def same_question(self, threshold: float) -> SameQuestion:
        """The rule for "the same question" at a threshold of this plan."""
        return SameQuestion(threshold=threshold, numbers_matter=self.numbers_matter)


class CurationReport(Frozen):
    """What became of the candidates. `accepted` counts target examples per skill, `dropped` candidates per
    reason.

    Reasons: `duplicate-exact`, `duplicate-near`, `contaminated-exact`, `contaminated-near`, `unsolved` and
    `inconsistent` count questions; `surplus` counts examples beyond the request, `contaminated-replay` replay
    examples.
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


class Curation(Frozen):
    """The data set of one round: target examples first, then replay, each with where it came from."""

    round_id: str
    examples: tuple[Example, ...]
    report: CurationReport


def same_answer_text(answer: str) -> str:
    """The default form in which final answers are compared: case and space do not matter."""
    return " ".join(answer.casefold().split())


@dataclass(frozen=True)
class ReplaySource:
    """What may be replayed: `reservoir` names examples of earlier rounds by skill, `earlier` holds them by
    id, `original` is old data."""

    reservoir: Reservoir = field(default_factory=dict)
    earlier: Mapping[str, Example] = field(default_factory=dict)
    original: Sequence[PoolItem] = ()


@dataclass(frozen=True)
class CurateContext:
    """What the graph works with. A resumed round must be given the same pool, held-out questions, history and
    replay.

    `used_items` counts in how many rounds a pool item was used; `used_questions` are texts that were
    synthesized before. `canonical` brings final answers into the form in which they are compared. `gate`
    bounds how many tasks work at once; `run_curation` sets it.
    """

    teacher: Teacher
    pool: Sequence[PoolItem]
    held_out: Sequence[str]
    used_items: Mapping[str, int] = field(default_factory=dict)
    used_questions: Sequence[str] = ()
    replay: ReplaySource = field(default_factory=ReplaySource)
    canonical: Callable[[str], str] = same_answer_text
    crash: CrashPoint = no_crash
    gate: AbstractContextManager[object] = field(default_factory=nullcontext, repr=False)

    @cached_property
    def items(self) -> Mapping[str, PoolItem]:
        """The pool by item id."""
        return {item.item_id: item for item in self.pool}

    @cached_property
    def skill_map(self) -> SkillMap:
        """Which items need which skill."""
        return SkillMap((item.item_id, item.skills) for item in self.pool)
