"""STAT-Syn: what to ask the teacher to write (paper section 3.3, arXiv 2510.10023)."""

from __future__ import annotations

import math
from collections.abc import Mapping

from agent.catalog import SkillMap
from agent.chance import ordered, rank
from agent.plan import StrategySettings, WriteRequest


def plan_synthesis(
    wanted: Mapping[str, int], skill_map: SkillMap, seed: int, settings: StrategySettings = StrategySettings()
) -> tuple[WriteRequest, ...]:
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
    >>> requests = plan_synthesis({"gcd": 3}, skill_map, seed=1)
    >>> [(request.skill, len(request.references), request.count) for request in requests]
    [('gcd', 3, 2), ('gcd', 3, 2), ('gcd', 3, 1)]
    """
    requests: list[WriteRequest] = []
    for skill in sorted(wanted):
        if wanted[skill] < 0:
            raise ValueError(f"wanted[{skill!r}] is negative: {wanted[skill]}")
        requests += _requests(
            skill, math.ceil(wanted[skill] / settings.examples_per_question - 1e-9), skill_map, seed, settings
        )
    return tuple(requests)


def _requests(
    skill: str, questions: int, skill_map: SkillMap, seed: int, settings: StrategySettings
) -> list[WriteRequest]:
    prompts = math.ceil(questions / settings.questions)
    references = _references(skill, prompts, settings.references, skill_map, seed)
    requests = []
    for number in range(prompts):
        count = min(settings.questions, questions - number * settings.questions)
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
