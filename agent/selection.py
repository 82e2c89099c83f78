"""STAT-Sel: which existing questions to train on (paper section 3.3, arXiv 2510.10023)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from agent.catalog import SkillMap
from agent.chance import allot, ordered, rank

K_SEL = 5
"""Questions drawn for each (difficult question, missing skill) in the paper."""


@dataclass(frozen=True, slots=True)
class Pick:
    """One drawn item, the skill that caused the draw, and in the offline form the difficult question behind
    it."""

    item_id: str
    skill: str
    cause: str | None = None


@dataclass(frozen=True, slots=True)
class PoolReport:
    """One skill's part of a selection: what it should get, what its pool has (all, unused) and what was
    picked."""

    wanted: int
    pool: int
    unused: int
    picked: int


@dataclass(frozen=True, slots=True)
class SelectionPlan:
    """The picks, in a fixed order, and a report by skill. `unique` counts distinct items."""

    picks: tuple[Pick, ...]
    pools: Mapping[str, PoolReport]

    @property
    def unique(self) -> int:
        """How many distinct items were picked."""
        return len({pick.item_id for pick in self.picks})


def plan_selection(
    weights: Mapping[str, float],
    skill_map: SkillMap,
    examples: int,
    seed: int,
    used: Mapping[str, int] | None = None,
) -> SelectionPlan:
    """Draw `examples` distinct items over the target skills, in proportion to their weights.

    Items never used come first, then those used least (`used`: item id -> rounds that used it). An item that
    needs two of the skills is picked once, for the skill with the smaller pool. What a pool lacks goes to the
    other skills; what all of them lack stays missing, and the report says so.

    Examples
    --------
    >>> skill_map = SkillMap([("q1", ("add",)), ("q2", ("add", "gcd")), ("q3", ("add",))])
    >>> plan = plan_selection({"add": 0.5, "gcd": 0.5}, skill_map, examples=3, seed=0, used={"q1": 1})
    >>> [(pick.item_id, pick.skill) for pick in plan.picks], plan.pools["gcd"]
    ([('q2', 'gcd'), ('q3', 'add'), ('q1', 'add')], PoolReport(wanted=1, pool=1, unused=1, picked=1))
    """
    history = used or {}
    queues = {skill: _queue(skill, skill_map, history, seed) for skill in weights}
    wanted = allot(examples, weights)
    taken: dict[str, str] = {}
    goals = allot(examples, weights, {skill: len(queue) for skill, queue in queues.items()})
    by_scarcity = sorted(
        (skill for skill in weights if weights[skill] > 0), key=lambda skill: (len(queues[skill]), skill)
    )
    for skill in by_scarcity:
        _take(queues[skill], skill, goals[skill], taken)
    for skill in reversed(by_scarcity):
        _take(queues[skill], skill, examples - len(taken), taken)
    picks = tuple(Pick(item_id, skill) for item_id, skill in taken.items())
    return SelectionPlan(
        picks=picks,
        pools={
            skill: PoolReport(
                wanted=wanted[skill],
                pool=len(queues[skill]),
                unused=sum(item not in history for item in queues[skill]),
                picked=sum(pick.skill == skill for pick in picks),
            )
            for skill in sorted(weights)
        },
    )


def _queue(skill: str, skill_map: SkillMap, used: Mapping[str, int], seed: int) -> list[str]:
    return sorted(ordered(skill_map.items(skill), seed, "select", skill), key=lambda item: used.get(item, 0))


def _take(queue: Sequence[str], skill: str, count: int, taken: dict[str, str]) -> None:
    fresh = (item for item in queue if item not in taken)
    for _, item in zip(range(count), fresh, strict=False):
        taken[item] = skill


def select_offline(
    failures: Iterable[tuple[str, Sequence[str]]],
    skill_map: SkillMap,
    limit: int | None,
    seed: int,
    k_sel: int = K_SEL,
) -> SelectionPlan:
    """The paper's offline form: `k_sel` items for every (difficult question, missing skill), then at most
    `limit` of all (None: all).

    Draws are without replacement within a pair, and independent between pairs, so an item may come several
    times: frequent skills weigh more. The difficult question itself is never drawn.

    Parameters
    ----------
    failures : iterable of (question_id, missing skills)
        The difficult questions with the skills missing in the student's answer to each.

    Examples
    --------
    >>> skill_map = SkillMap([(f"q{i}", ("add",)) for i in range(9)])
    >>> plan = select_offline([("v1", ["add"]), ("v2", ["add"])], skill_map, limit=8, seed=0)
    >>> len(plan.picks), plan.pools["add"].wanted, plan.unique <= 8
    (8, 10, True)
    """
    draws: list[Pick] = []
    wanted: dict[str, int] = {}
    for question, missing in failures:
        for skill in dict.fromkeys(missing):
            wanted[skill] = wanted.get(skill, 0) + k_sel
            others = [item for item in skill_map.items(skill) if item != question]
            draws += [
                Pick(item, skill, question)
                for item in ordered(others, seed, "offline", skill, question)[:k_sel]
            ]
    draws.sort(
        key=lambda pick: (rank(seed, "limit", pick.skill, pick.cause or "", pick.item_id), pick.item_id)
    )
    picks = tuple(draws[:limit])
    reports = {}
    for skill in sorted(wanted):
        pool = len(skill_map.items(skill))
        reports[skill] = PoolReport(wanted[skill], pool, pool, sum(pick.skill == skill for pick in picks))
    return SelectionPlan(picks, reports)
