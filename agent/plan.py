"""What a strategy is given and what it plans: draws from the pool, requests for new questions, and the pairs
chosen from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from pydantic import Field, model_validator

from agent.catalog import SkillMap
from agent.chance import rank
from agent.errors import AgentError
from agent.items import Frozen
from agent.selection import K_SEL
from agent.settings import Settings

StrategyName = str
"""A row of `agent.strategies.STRATEGIES`."""


class StrategyError(AgentError):
    """A strategy cannot plan with what it was given; the message says what is missing."""


class StrategySettings(Settings):
    """The paper's parameters (STAT, arXiv 2510.10023, section 3.3), for the loop and for files alike.

    `pairs` bounds the data set; `answers` are answers for each drawn question, `rewrite` false keeps the
    pool's own solution as the one answer. A request shows `references`, asks for `questions`; each of them
    gets `solutions` and is kept when `min_agreement` of them have the same final answer. `k_embed` counts
    nearest questions for each difficult one; `prompts` are requests for each (difficult question, missing
    skill): 500 x 2.5 x 2 questions cannot reach the paper's 4k unique ones. `share` is the targeted part of
    `mix`, `hard_levels` what counts as hard.

    How much to ask for when a number of examples is wanted (agent/synthesis.py): `acceptance` is the part of
    written questions that is expected to survive the filters, `pairs_per_question` how many of a question's
    agreeing solutions are counted on: 1 asks for as many different questions as examples, the paper keeps all
    that agree, which costs a third.
    """

    pairs: int = Field(default=9_500, ge=1)
    k_sel: int = Field(default=K_SEL, ge=1)
    answers: int = Field(default=3, ge=1)
    references: int = Field(default=3, ge=1)
    questions: int = Field(default=2, ge=1)
    solutions: int = Field(default=3, ge=1)
    min_agreement: int = Field(default=2, ge=1)
    prompts: int = Field(default=1, ge=1)
    k_embed: int = Field(default=5, ge=1)
    share: float = Field(default=0.5, ge=0, le=1)
    hard_levels: tuple[int, ...] = (4, 5)
    rewrite: bool = True
    acceptance: float = Field(default=0.6, gt=0, le=1)
    pairs_per_question: float = Field(default=1.0, ge=1)

    @model_validator(mode="after")
    def _solutions_suffice(self) -> Self:
        if max(self.min_agreement, self.pairs_per_question) > self.solutions:
            raise ValueError(
                f"min_agreement and pairs_per_question must be at most solutions ({self.solutions})"
            )
        return self

    @property
    def examples_per_question(self) -> float:
        """Examples that a written question is expected to come to."""
        return self.acceptance * self.pairs_per_question


class Failure(Frozen):
    """A difficult question: the skills it needs and those that the student failed to apply (paper section
    3.2)."""

    question_id: str
    needed: tuple[str, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PlanInput:
    """What a plan depends on. `levels` holds the difficulty of pool items where it is known.

    `nearest` gives for a difficult question the pool items most like it, nearest first; only the `embed-`
    strategies need it.
    """

    skill_map: SkillMap
    item_ids: Sequence[str]
    failures: Sequence[Failure]
    seed: int
    levels: Mapping[str, int] = field(default_factory=dict)
    nearest: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Draw:
    """One pool question to train on: for which skill, because of which difficult question, and in which part
    of a mixture."""

    item_id: str
    skill: str | None
    cause: str | None
    part: str


@dataclass(frozen=True, slots=True)
class WriteRequest:
    """One call of `Teacher.write`; without a `skill` it asks for questions like the references. `request_id`
    is the same whenever the plan is made again; fewer references mean a small pool."""

    request_id: str
    skill: str
    references: tuple[str, ...]
    count: int
    seed: int


@dataclass(frozen=True, slots=True)
class Request:
    """One request for new questions, because of the difficult question `cause`."""

    write: WriteRequest
    cause: str | None
    part: str


@dataclass(frozen=True, slots=True)
class DataPlan:
    """What a strategy wants. `quotas` divides the pairs among parts of a mixture; empty: one part gets all.

    `answers` is the number of answers for each drawn question; with `rewritten` false it is the pool's own
    solution, once. `sizes` are the examples that a planner wants of each skill: new questions beyond them are
    surplus. `empty_skills` are missing skills for which the pool has no question, with the number of failures
    behind each.
    """

    draws: tuple[Draw, ...] = ()
    requests: tuple[Request, ...] = ()
    answers: int = 1
    rewritten: bool = False
    quotas: Mapping[str, int] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    empty_skills: Mapping[str, int] = field(default_factory=dict)

    @property
    def unique_items(self) -> int:
        """Distinct pool questions drawn."""
        return len({draw.item_id for draw in self.draws})


@dataclass(frozen=True, slots=True)
class Pair:
    """One question-answer pair of the data set: the draw behind it and the number of its answer, from 0."""

    draw: Draw
    answer: int


def choose_pairs(
    plan: DataPlan, limit: int | None, seed: int, usable: Callable[[str], bool] = lambda item_id: True
) -> tuple[Pair, ...]:
    """At most `limit` distinct question-answer pairs, drawn at random over all draws; None: all, in their
    order.

    An item that was drawn often is more likely to be in, but no pair comes twice. `usable` leaves items out
    (repeats, contamination). A part of a mixture that cannot fill its quota stays short.
    """
    slots = [
        (draw.item_id, answer, at)
        for at, draw in enumerate(plan.draws)
        if usable(draw.item_id)
        for answer in range(plan.answers)
    ]
    if limit is not None:
        slots.sort(key=lambda slot: (_chance(plan.draws[slot[2]], slot[1], seed), slot))
    room = Counter(dict(plan.quotas)) if plan.quotas else None
    chosen: dict[tuple[str, int], Pair] = {}
    for item_id, answer, at in slots:
        draw = plan.draws[at]
        if len(chosen) == limit or (item_id, answer) in chosen or (room is not None and room[draw.part] <= 0):
            continue
        chosen[item_id, answer] = Pair(draw, answer)
        if room is not None:
            room[draw.part] -= 1
    return tuple(chosen.values())


def _chance(draw: Draw, answer: int, seed: int) -> int:
    return rank(seed, "pair", draw.part, draw.item_id, draw.skill or "", draw.cause or "", str(answer))


def failures_by_skill(failures: Iterable[Failure]) -> dict[str, int]:
    """The paper's profile: over how many difficult questions each skill is missing, most frequent first."""
    counts = Counter(skill for failure in failures for skill in dict.fromkeys(failure.missing))
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))
