"""Two students' outcomes on the same items, as arrays: which items count for what, and who gained or lost
there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import combinations

import numpy as np
import numpy.typing as npt

from training.errors import EvaluationFailed
from training.evaluate import Evaluation, Key, require_same_items
from training.members import members_of
from training.paired import Floats, PairedCounts, equivalent_counts
from training.verdict import PAIRED

Places = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Layout:
    """Which items count for which skill (the rule is in training/evaluate.py). A pair says that `item_of`
    counts for `skill_of`. `several` marks items that need more than one skill.
    """

    skills: tuple[str, ...]
    strata: Mapping[str, Places]
    tested: npt.NDArray[np.bool_]
    several: npt.NDArray[np.bool_]
    item_of: Places
    skill_of: Places

    def by_skill(self, values: Floats) -> Floats:
        """Sum of an item's value over each skill's items."""
        sums = np.bincount(self.skill_of, weights=values[self.item_of], minlength=len(self.skills))
        return np.asarray(sums, dtype=np.float64)

    def needing(self, skills: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Marks the items that count for any of the skills."""
        wanted = np.isin(np.array(self.skills, dtype=object), np.array(skills, dtype=object))
        marks = np.zeros(len(self.tested), dtype=bool)
        marks[self.item_of[wanted[self.skill_of]]] = True
        return marks


@lru_cache(maxsize=4)
def layout_of(keys: tuple[Key, ...], untested: tuple[str, ...]) -> Layout:
    """The layout of an item set; items of `untested` strata count for no skill. Skills without items are left
    out.
    """
    strata: dict[str, list[int]] = {}
    for place, (_, stratum, _) in enumerate(keys):
        strata.setdefault(stratum, []).append(place)
    tested = np.array([stratum not in untested for _, stratum, _ in keys], dtype=bool)
    members = members_of(keys, untested)
    names = tuple(sorted(members))
    sets = {name: np.array(strata[name]) for name in sorted(strata)}
    several = np.array([len(set(skills)) > 1 for _, _, skills in keys], dtype=bool)
    return Layout(names, sets, tested, several, *_members([members[name] for name in names]))


def _members(places: Sequence[Sequence[int]]) -> tuple[Places, Places]:
    """`item_of` and `skill_of` for the places of each skill's items."""
    item_of = np.array([place for each in places for place in each], dtype=np.intp)
    return item_of, np.repeat(np.arange(len(places)), [len(each) for each in places])


@lru_cache(maxsize=4)
def pairs_of(keys: tuple[Key, ...], untested: tuple[str, ...], least: int) -> Layout:
    """The layout of an item set by pairs of skills, `a + b`: an item counts for each pair that it needs. Only
    pairs with `least` items or more."""
    whole, places = layout_of(keys, untested), dict[str, list[int]]()
    for place, (_, _, skills) in enumerate(keys):
        for both in combinations(sorted(set(skills)), 2) if whole.tested[place] else ():
            places.setdefault(PAIRED.join(both), []).append(place)
    names = tuple(name for name in sorted(places) if len(places[name]) >= least)
    item_of, skill_of = _members([places[name] for name in names])
    return replace(whole, skills=names, item_of=item_of, skill_of=skill_of)


@dataclass(frozen=True)
class Comparison:
    """A challenger held against one other student. Items that either left undecided count for nothing."""

    before: Floats
    after: Floats

    @cached_property
    def decided(self) -> Floats:
        """1 for items decided for both, else 0."""
        return (~np.isnan(self.before) & ~np.isnan(self.after)).astype(np.float64)

    @cached_property
    def difference(self) -> Floats:
        """Challenger - other by item, in [-1, 1]; 0 where undecided."""
        return np.nan_to_num(self.after - self.before)

    @cached_property
    def gains(self) -> Floats:
        """The positive part of the difference."""
        return np.maximum(self.difference, 0.0)

    @cached_property
    def losses(self) -> Floats:
        """The negative part of the difference, as positive numbers."""
        return np.maximum(-self.difference, 0.0)

    @cached_property
    def scale(self) -> float:
        """Whole flips per unit of difference, so that flips have their own number as variance; 1 when each
        item was answered once.
        """
        squares = float((self.difference**2).sum())
        return float(np.abs(self.difference).sum()) / squares if squares else 1.0

    def counts(self, weights: Floats) -> PairedCounts:
        """Gains and losses over weighted items, equivalent in mean and variance."""
        return equivalent_counts(self.difference, weights * self.decided)

    def shares(self, weights: Floats) -> tuple[float, float]:
        """Weighted accuracy of the other student and of the challenger, over the decided items."""
        kept = weights * self.decided
        total = float(kept.sum())
        if total <= 0:
            return 0.0, 0.0
        return float(kept @ np.nan_to_num(self.before)) / total, float(
            kept @ np.nan_to_num(self.after)
        ) / total


def compare(challenger: Evaluation, other: Evaluation) -> Comparison:
    """The comparison, items in the challenger's order. Raises `ItemSetMismatch` unless both are on the same
    items.
    """
    require_same_items(other, challenger)
    for evaluation in (other, challenger):
        if ((evaluation.rates < 0) | (evaluation.rates > 1)).any():
            raise EvaluationFailed("an outcome is outside 0 to 1; evaluate again")
    if other.keys == challenger.keys:
        return Comparison(other.rates, challenger.rates)
    place_of = {key: place for place, key in enumerate(other.keys)}
    return Comparison(other.rates[[place_of[key] for key in challenger.keys]], challenger.rates)


def traffic_weights(layout: Layout, shares: Mapping[str, float] | None) -> Floats:
    """A weight per item so that the weighted accuracy is the traffic's: each skill's share is spread evenly
    over its items.

    None: items as they are. Raises `EvaluationFailed` for shares that are no mixture or of which no skill was
    measured.
    """
    if shares is None:
        return layout.tested.astype(np.float64)
    by_skill = np.array([shares.get(skill, 0.0) for skill in layout.skills], dtype=np.float64)
    if not (np.isfinite(by_skill).all() and (by_skill >= 0).all() and by_skill.sum() > 0):
        raise EvaluationFailed(
            "the traffic's shares must be finite, at least 0, and name a skill that was measured"
        )
    items = layout.by_skill(layout.tested.astype(np.float64))
    spread = (by_skill / np.maximum(items, 1.0))[layout.skill_of]
    by_item = np.bincount(layout.item_of, weights=spread, minlength=len(layout.tested))
    return np.asarray(by_item * layout.tested, dtype=np.float64)
