"""STAT-Syn: what to ask the teacher to write (paper section 3.3, arXiv 2510.10023)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from pydantic import Field, model_validator

from agent.catalog import SkillMap
from agent.chance import ordered, rank
from agent.settings import Settings


class SynthesisSettings(Settings):
    """Sizes of the requests.

    The paper shows 3 references, asks for 2 questions a prompt and 3 solutions of each. `acceptance` is the
    part of the written questions expected to survive the filters (consistency, duplicates, contamination).
    `pairs_per_question` is how many of a question's agreeing solutions are counted on as examples: 1 asks for
    as many different questions as examples, the paper keeps all that agree (up to 3), which costs a third.
    """

    questions_per_prompt: int = Field(default=2, ge=1)
    references_per_prompt: int = Field(default=3, ge=1)
    solutions_per_question: int = Field(default=3, ge=1)
    acceptance: float = Field(default=0.6, gt=0, le=1)
    pairs_per_question: float = Field(default=1.0, ge=1)

    @model_validator(mode="after")
    def _at_most_all(self) -> Self:
        if self.pairs_per_question > self.solutions_per_question:
            raise ValueError(
                "pairs_per_question must lie in [1, "
                f"{self.solutions_per_question}], got {self.pairs_per_question}"
            )
        return self

    @property
    def examples_per_question(self) -> float:
        """Examples that a written question is expected to come to."""
        return self.acceptance * self.pairs_per_question


DEFAULT_SYNTHESIS = SynthesisSettings()


@dataclass(frozen=True, slots=True)
class WriteRequest:
    """One call of `Teacher.write`. `request_id` is the same whenever the plan is made again; fewer references
    mean a small pool."""

    request_id: str
    skill: str
    references: tuple[str, ...]
    count: int
    seed: int


@dataclass(frozen=True, slots=True)
class SynthesisPlan:
    """The requests in order, and what they should come to.

    `calls` counts teacher calls: one for each request and one for each question (its solutions come in one
    call).
    """

    requests: tuple[WriteRequest, ...]
    expected_examples: float
    calls: int

    @property
    def questions(self) -> int:
        """How many questions are asked for."""
        return sum(request.count for request in self.requests)


def plan_synthesis(
    wanted: Mapping[str, int], skill_map: SkillMap, seed: int, settings: SynthesisSettings = DEFAULT_SYNTHESIS
) -> SynthesisPlan:
    """Plan requests that should yield `wanted[skill]` examples for each skill.

    References walk through the skill's items in a random order and start over in another one, so that every
    item serves before any serves twice. A skill without items gets requests without references.

    Raises
    ------
    ValueError
        When a wanted number is negative.

    Examples
    --------
    >>> skill_map = SkillMap([(f"q{i}", ("gcd",)) for i in range(4)])
    >>> plan = plan_synthesis({"gcd": 3}, skill_map, seed=1)
    >>> [(request.skill, len(request.references), request.count) for request in plan.requests], plan.calls
    ([('gcd', 3, 2), ('gcd', 3, 2), ('gcd', 3, 1)], 8)
    """
    requests: list[WriteRequest] = []
    for skill in sorted(wanted):
        if wanted[skill] < 0:
            raise ValueError(f"wanted[{skill!r}] is negative: {wanted[skill]}")
        requests += _requests(
            skill, math.ceil(wanted[skill] / settings.examples_per_question - 1e-9), skill_map, seed, settings
        )
    questions = sum(request.count for request in requests)
    return SynthesisPlan(
        tuple(requests), questions * settings.examples_per_question, len(requests) + questions
    )


def _requests(
    skill: str, questions: int, skill_map: SkillMap, seed: int, settings: SynthesisSettings
) -> list[WriteRequest]:
    prompts = math.ceil(questions / settings.questions_per_prompt)
    references = _references(skill, prompts, settings.references_per_prompt, skill_map, seed)
    requests = []
    for number in range(prompts):
        count = min(settings.questions_per_prompt, questions - number * settings.questions_per_prompt)
        own_seed = rank(seed, "write", skill, str(number)) % 2**31
        requests.append(WriteRequest(f"{skill}/{seed}/{number}", skill, references[number], count, own_seed))
    return requests


def _references(skill: str, prompts: int, size: int, skill_map: SkillMap, seed: int) -> list[tuple[str, ...]]:
    """Groups of at most `size` distinct items, walking through the pool again and again."""
    pool = skill_map.items(skill)
    size = min(size, len(pool))
    groups: list[tuple[str, ...]] = []
    queue: list[str] = []
    lap = 0
    while len(groups) < prompts:
        if len(queue) < size:
            rest = set(queue)
            again = ordered(pool, seed, "reference", skill, str(lap))
            queue += [item for item in again if item not in rest] + [item for item in again if item in rest]
            lap += 1
        groups.append(tuple(queue[:size]))
        queue = queue[size:]
    return groups
