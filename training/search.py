"""The search for harm: everything looked at, each look with its p-value of a loss and its weight in the error
rate.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np

from training.comparison import Comparison, Layout, Places
from training.evaluate import SKILL_STRATUM
from training.harm import STRONGEST, adjusted, flip_strength, independent_looks, loss_p, simes
from training.paired import Floats, PairedCounts, loss_z, upper_tail

Seen = Literal["targets", "whole", "rest", "stratum", "several", "skill", "pair", "reported"]
SKILLS_SHARE, PAIRS_SHARE = 0.7, 0.1
"""Of the search's error rate, what goes to single skills and to pairs of skills where there are any; the rest
to the whole, the rest, the evaluation sets and what needs several skills.
"""
SEVERAL = "what needs several skills"
PLENTY = 300.0
"""Items from which a skill needs no larger share of the error rate (decision 0027)."""
CHAMPION = "champion"


@dataclass(frozen=True)
class Look:
    """One group of items beside one other student. `shares`: accuracy of that student and of the
    challenger.
    """

    name: str
    kind: Seen
    against: str
    counts: PairedCounts
    items: int
    shares: tuple[float, float]
    p_value: float
    weight: float


@dataclass(frozen=True)
class Search:
    """The challenger beside each reference: the champion, and earlier champions by name. `traffic`: a weight
    per item.

    `targets`: 1 for the items of target skills, which are expected to gain. `pairs`: the layout of pairs of
    skills, for harm to how skills are combined, which no single skill's items need to show.
    """

    layout: Layout
    pairs: Layout
    references: Mapping[str, Comparison]
    traffic: Floats
    targets: Floats

    def looks(self) -> list[tuple[Look, float]]:
        """Everything looked at, with p-values adjusted for their number: at most q means harm, at false
        discovery rate q.
        """
        looks = [*self._groups(CHAMPION), *self._groups_beside_earlier(), *self.each_skill(), *self._pairs()]
        weights = np.array([look.weight for look in looks])
        kinds = np.array([look.kind for look in looks], dtype=object)
        skills, pairs = kinds == "skill", kinds == "pair"
        pairs_share = PAIRS_SHARE if pairs.any() else 0.0
        for chosen, share in (
            (skills, SKILLS_SHARE),
            (pairs, pairs_share),
            (~(skills | pairs), 1 - SKILLS_SHARE - pairs_share),
        ):
            weights[chosen] *= share / max(weights[chosen].sum(), 1.0)
        p_values = adjusted(np.array([look.p_value for look in looks]), weights)
        return list(zip(looks, p_values.tolist(), strict=True))

    def skill(self, name: str, against: str) -> Look:
        """One skill beside one reference. Raises `ValueError` when no item needs it."""
        place = self.layout.skills.index(name)
        return self._skill(place, against, float(self._loss_p[against][place]), 0.0)

    def group(self, name: str, kind: Seen, against: str, weights: Floats) -> Look:
        """A group of items, weighted, with the p-value of the ordinary z test."""
        comparison = self.references[against]
        counts = comparison.counts(weights)
        items = int((comparison.decided * (weights > 0)).sum())
        return Look(
            name, kind, against, counts, items, comparison.shares(weights), upper_tail(loss_z(counts)), 1.0
        )

    def _groups(self, against: str) -> Iterator[Look]:
        for name, kind, weights in self._wholes():
            yield self.group(name, kind, against, weights)
        rest = self.traffic * (1 - self.targets)
        if self.targets.any() and rest.any():
            look = self.group("all but the targets", "rest", against, rest)
            yield replace(look, weight=2.0)  # the targets' gain does not hide a loss of all others here
        for name, places in self.layout.strata.items():
            if not name.startswith(SKILL_STRATUM) and self.layout.tested[places].any():
                yield self.group(name, "stratum", against, marks(places, len(self.traffic)))

    def each_skill(self) -> Iterator[Look]:
        """Each skill of the layout beside the champion, and one look for it beside all earlier champions,
        named after the one that it lost to most surely."""
        p_values, weights = self._loss_p[CHAMPION].tolist(), self._weights.tolist()
        for place, (p_value, weight) in enumerate(zip(p_values, weights, strict=True)):
            yield self._skill(place, CHAMPION, p_value, weight)
        if not self._earlier:
            return
        beside = np.column_stack([self._loss_p[name] for name in self._earlier])
        together, worst = simes(beside, self._worth).tolist(), beside.argmin(axis=1).tolist()
        for place, (p_value, which, weight) in enumerate(zip(together, worst, weights, strict=True)):
            yield self._skill(place, self._earlier[which], p_value, weight)

    def _pairs(self) -> Iterator[Look]:
        """Pairs as skills, but the prior of their flips comes from what needs several skills alone: that may
        waver far more than what needs one."""
        if not self.pairs.skills:
            return
        apart = np.maximum(self.targets, ~self.layout.several)
        for look in replace(self, layout=self.pairs, targets=apart).each_skill():
            yield replace(look, kind="pair")

    def _groups_beside_earlier(self) -> Iterator[Look]:
        """The whole, and what needs several skills, beside all earlier champions: one look each."""
        for name, kind, weights in self._wholes() if self._earlier else ():
            looks = [self.group(name, kind, against, weights) for against in self._earlier]
            together = simes(np.array([[look.p_value for look in looks]]), self._worth)
            yield replace(min(looks, key=lambda look: look.p_value), p_value=float(together[0]))

    def _wholes(self) -> Iterator[tuple[str, Seen, Floats]]:
        yield "all skills", "whole", self.traffic
        several = self.layout.several & self.layout.tested
        if 0 < several.sum() < self.layout.tested.sum():
            yield SEVERAL, "several", several.astype(np.float64)

    @cached_property
    def _earlier(self) -> list[str]:
        return [name for name in self.references if name != CHAMPION]

    @cached_property
    def _worth(self) -> float:
        """How many independent comparisons those with earlier champions are."""
        return independent_looks(np.array([self.references[name].difference for name in self._earlier]))

    def _skill(self, place: int, against: str, p_value: float, weight: float) -> Look:
        before, after, gained, lost, items, squares = self._tables[against][:, place].tolist()
        moved = gained - lost
        flips = max(squares, abs(moved))  # sampled answers waver less than whole flips do
        counts = PairedCounts((flips + moved) / 2, (flips - moved) / 2, items)
        share = max(items, 1.0)
        name = self.layout.skills[place]
        return Look(
            name, "skill", against, counts, int(items), (before / share, after / share), p_value, weight
        )

    @cached_property
    def _weights(self) -> Floats:
        """By skill. As its items squared: the power of a test grows so steeply; from `PLENTY` on items make
        up for a smaller share.
        """
        return np.asarray(np.minimum(self._tables[CHAMPION][4], PLENTY) ** 2, dtype=np.float64)

    @cached_property
    def _tables(self) -> dict[str, Floats]:
        """By reference, sums by skill: right before, right after, gained, lost, decided items,
        squared differences."""
        return {
            name: np.array([self.layout.by_skill(v) for v in _values(reference)])
            for name, reference in self.references.items()
        }

    @cached_property
    def _strength(self) -> float:
        """What the other skills' flips are worth as a prior, learnt beside the champion."""
        champion = self.references[CHAMPION]
        rest = champion.decided * (1 - self.targets)
        return flip_strength(
            self.layout.by_skill(champion.gains * rest) * champion.scale,
            self.layout.by_skill(rest) * champion.scale,
        )

    @cached_property
    def _loss_p(self) -> dict[str, Floats]:
        """By reference, the p-value of a loss by skill."""
        return {name: self._loss_p_beside(name) for name in self.references}

    def _loss_p_beside(self, against: str) -> Floats:
        """The p-value of a loss by skill. Prior: how often items of no target and not of this skill flipped.

        Beside an earlier champion only losses tell: skills taught since have gained. Sampled answers differ
        by fractions; `scale` turns them into as many whole flips as have their variance. A skill whose items
        flip as a whole among others that waver is counted in its own.
        """
        comparison = self.references[against]
        scale, rest = comparison.scale, comparison.decided * (1 - self.targets)
        flips = (comparison.gains + comparison.losses) / 2 if against == CHAMPION else comparison.losses
        others = (rest.sum() - self.layout.by_skill(rest)) * scale
        expected = ((flips * rest).sum() - self.layout.by_skill(flips * rest)) * scale
        _, _, gained, lost, items, squares = self._tables[against]
        own = np.minimum(scale, (gained + lost) / np.where(squares > 0, squares, 1.0))
        gained, lost, items = gained * own, lost * own, items * own
        strength = np.clip(others, 1.0, min(self._strength, STRONGEST))
        return loss_p(gained, lost, items, (expected + 0.5) / (others + 1), strength)


def _values(reference: Comparison) -> tuple[Floats, ...]:
    right = (
        np.nan_to_num(reference.before) * reference.decided,
        np.nan_to_num(reference.after) * reference.decided,
    )
    return (*right, reference.gains, reference.losses, reference.decided, reference.difference**2)


def marks(places: Places, count: int) -> Floats:
    """1 at the places, else 0."""
    result = np.zeros(count)
    result[places] = 1.0
    return result
