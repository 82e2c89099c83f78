"""Replay against forgetting: half of a round is old data, and half of that comes from earlier rounds' target
skills. Of the original data, a part needs several skills at once: rounds on single skills forget first how
skills are combined (docs/decisions/0036-replay-keeps-compositions.md).

Measured in the demo's world: after three rounds the rare skills stood at 72 with the reservoir of earlier
targets and at 55 with original data only; 10-30 % replay instead of 50 % cost 1-2 points on the original
mixture.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from pydantic import Field

from agent.catalog import SkillMap
from agent.chance import allot, ordered
from agent.settings import Settings

Reservoir = Mapping[str, tuple[str, ...]]
"""Example ids of earlier rounds by the skill that they were made for."""


class ReplaySettings(Settings):
    """`share`: replayed part of a round's examples; `earlier_share`: part of the replay drawn from earlier
    targets; `composition_share`: part of the other replay that needs more than one skill, as far as there is
    such data; `capacity`: examples kept per skill in the reservoir."""

    share: float = Field(default=0.5, ge=0, lt=1)
    earlier_share: float = Field(default=0.5, ge=0, le=1)
    composition_share: float = Field(default=0.5, ge=0, le=1)
    capacity: int = Field(default=500, ge=0)


DEFAULT_REPLAY = ReplaySettings()


@dataclass(frozen=True, slots=True)
class ReplayPlan:
    """Ids to replay, and how many of the wanted number neither source could give."""

    earlier: tuple[str, ...]
    original: tuple[str, ...]
    short: int


def plan_replay(
    new_examples: Collection[str],
    reservoir: Reservoir,
    original: SkillMap,
    seed: int,
    settings: ReplaySettings = DEFAULT_REPLAY,
) -> ReplayPlan:
    """Choose what to replay beside `new_examples` (ids): distinct ids, none of them in the new part.

    Skills get equal parts, whatever their number of examples, both among the earlier targets and in the
    `original` data: what is rare is forgotten first. Of the original data, `composition_share` is drawn from
    what needs several skills, with equal parts for each combination. What one source lacks the other gives.

    Examples
    --------
    >>> earlier = {"gcd": ("e1", "e2", "e3")}
    >>> original = SkillMap([("o1", ("add",)), ("o2", ("add",)), ("o3", ("add", "sub"))])
    >>> plan = plan_replay(["n1", "n2", "n3", "n4"], earlier, original, seed=0)
    >>> len(plan.earlier), "o3" in plan.original, len(plan.original), plan.short
    (2, True, 2, 0)
    """
    new = set(new_examples)
    total = round(len(new) * settings.share / (1.0 - settings.share))
    earlier = _evenly(reservoir, new, seed, total)
    by_skill = {skill: original.items(skill) for skill in original.sizes}
    plain = len(set().union(*by_skill.values()) - new - set(earlier))
    from_earlier = min(round(total * settings.earlier_share), len(earlier))
    from_original = min(total - from_earlier, plain)
    from_earlier = min(total - from_original, len(earlier))
    kept = new | set(earlier)
    composed = _evenly(_combinations(original), kept, seed, round(from_original * settings.composition_share))
    rest = _evenly(by_skill, kept | set(composed), seed, sum(original.sizes.values()))
    return ReplayPlan(
        tuple(earlier[:from_earlier]),
        (*composed, *rest[: from_original - len(composed)]),
        total - from_earlier - from_original,
    )


def _combinations(original: SkillMap) -> Reservoir:
    """Ids of what needs several skills, by the combination."""
    groups: dict[str, dict[str, None]] = {}
    for skill in original.sizes:
        for item_id in original.items(skill):
            if len(original.skills(item_id)) > 1:
                groups.setdefault(" ".join(sorted(original.skills(item_id))), {})[item_id] = None
    return {name: tuple(ids) for name, ids in groups.items()}


def _evenly(source: Reservoir, new: set[str], seed: int, most: int) -> list[str]:
    """Up to `most` distinct ids, one skill after another in turn, so that any prefix is even."""
    queues = [
        [i for i in ordered(source[skill], seed, "replay", skill) if i not in new] for skill in sorted(source)
    ]
    parts = allot(
        most,
        {str(n): 1.0 for n in range(len(queues))},
        {str(n): len(queue) for n, queue in enumerate(queues)},
    )
    turns = [(turn, n) for n in range(len(queues)) for turn in range(parts[str(n)])]
    return list(dict.fromkeys(queues[n][turn] for turn, n in sorted(turns)))


def keep(
    reservoir: Reservoir, new: Reservoir, seed: int, settings: ReplaySettings = DEFAULT_REPLAY
) -> dict[str, tuple[str, ...]]:
    """Add a round's examples to the reservoir: per skill a uniform sample of all seen so far, at most
    `capacity`.

    With one seed for the student's whole life the result does not depend on the order of the rounds, and
    adding a round twice changes nothing (bottom-k sampling).

    Examples
    --------
    >>> settings = ReplaySettings(capacity=2)
    >>> once = keep({}, {"gcd": ("a", "b", "c")}, seed=0, settings=settings)
    >>> len(once["gcd"]), keep(once, {"gcd": ("a", "b", "c")}, seed=0, settings=settings) == once
    (2, True)
    """
    skills = sorted({*reservoir, *new})
    together = {skill: (*reservoir.get(skill, ()), *new.get(skill, ())) for skill in skills}
    return {
        skill: tuple(ordered(ids, seed, "keep", skill)[: settings.capacity])
        for skill, ids in together.items()
    }
