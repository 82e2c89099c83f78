"""Simulated rounds for benchmarks/gate.py: catalogs, held-out items and students, judged by
`training.gate.judge`.

Catalogs have Zipf shares of traffic and of held-out items, in two evaluation sets of 70 and 30 % of the
items. Each case is two students: the challenger gains 10 to 30 points on two targets (planned as the policy
does: items enough for a power of .95 at the true gain, or else the two best measured skills), `flips` of all
items change either way by chance, and the scenario adds a loss.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from training.evaluate import Evaluation
from training.gate import GateSettings, GateVerdict, judge
from training.power import power_of_gain

Floats = npt.NDArray[np.float64]
ITEM_SETS, ROUNDS = 10, 10
FLIPS = {"5 %": (0.05, 0.05), "5-15 %": (0.05, 0.15), "15 %": (0.15, 0.15)}
SCENARIOS = {
    "good": "targets gain, nothing is lost",
    "good, any targets": "the same, with two targets drawn at random among the skills with 20 items",
    "good, later": "the sixth such round, with five harmless ones before it as history",
    "equal": "the same student again, but for flips",
    "20 on one": "one skill with at least 100 items loses 20 points",
    "10 on one": "one skill with at least 300 items loses 10 points",
    "20 on one pair": "the items that need one pair of skills, at least 100, lose 20 points",
    "10 on several": "all items that need several skills, but the targets', lose 10 points",
    "3 on all": "all items but the targets' lose 3 points",
    "creeping": "ten rounds, each loses 3 points on the same skill (at least 300 items)",
    "creeping, protected": "the same, and the skill is protected",
}
VARIANTS = {
    "single": "one skill an item, one greedy answer",
    "chains": "two or three skills an item",
    "mixed": "one, two or three skills an item",
    "sampled": "four sampled answers an item",
    "wavering": "flip rates differ widely between skills: mean 10 %, standard deviation 8 points",
    "even": "equally many items for each skill, the Zipf shares given as weights",
}
SKILLS_OF = {"chains": (2, 4), "mixed": (1, 4)}
"""How many skills an item needs, from and below, where it is not one."""
SAMPLES, SURE, ALPHA = 4, 0.9, GateSettings().alpha
"""Sampled answers: right with probability .9 where the student is able to, .1 where not."""


LEAST = {
    "20 on one": 100,
    "20 on one pair": 100,
    "10 on one": 300,
    "creeping": 300,
    "creeping, protected": 300,
}
"""Items of what is harmed."""


@dataclass(frozen=True)
class Cell:
    """One row of the report."""

    scenario: str
    variant: str
    skills: int
    items: int
    flips: str


class Items:
    """A held-out set: which skills each item needs, and its outcomes ready made for every possible number of
    right answers.
    """

    def __init__(self, rng: np.random.Generator, variant: str, skills: int, items: int) -> None:
        shares = 1 / np.arange(1, skills + 1)
        self.names = tuple(f"skill-{place:03d}" for place in range(skills))
        self.weights = (
            dict(zip(self.names, (shares / shares.sum()).tolist(), strict=True))
            if variant == "even"
            else None
        )
        self.samples = SAMPLES if variant == "sampled" else 1
        drawn = np.argsort(
            (0.0 if variant == "even" else np.log(shares)) + rng.gumbel(size=(items, skills)), axis=1
        )[:, ::-1]
        count = np.ones(items, dtype=int)  # which draws nothing: cells of before keep their cases
        if variant in SKILLS_OF:
            count = rng.integers(*SKILLS_OF[variant], items)
        self.item_of = np.repeat(np.arange(items), count)
        self.skill_of = np.concatenate(
            [row[:number] for row, number in zip(drawn, count.tolist(), strict=True)]
        )
        self.per_item = count
        self.needs = np.zeros((items, skills), dtype=bool)
        self.needs[self.item_of, self.skill_of] = True
        self.counts = np.asarray(self.needs.sum(axis=0), dtype=np.int64)
        strata = np.where(rng.random(items) < 0.7, "recent", "older").tolist()
        self.keys = tuple(
            (
                f"item-{place}",
                strata[place],
                tuple(self.names[skill] for skill in np.flatnonzero(row).tolist()),
            )
            for place, row in enumerate(self.needs)
        )

    def of_skills(self, values: Floats) -> Floats:
        """By item, the mean over its skills of a value by skill."""
        return (
            np.bincount(self.item_of, weights=values[self.skill_of], minlength=len(self.per_item))
            / self.per_item
        )

    def evaluation(self, rng: np.random.Generator, able: npt.NDArray[np.bool_]) -> Evaluation:
        """The student's answers. `judge` reads an evaluation's keys and rates alone, so these are set and no
        outcome is built.
        """
        right = (
            able.astype(int) if self.samples == 1 else rng.binomial(SAMPLES, np.where(able, SURE, 1 - SURE))
        )
        evaluation = Evaluation.model_construct(items_sha256="simulated", outcomes=())
        vars(evaluation).update(keys=self.keys, rates=right / self.samples)
        return evaluation


@dataclass
class Student:
    """What a student can do: by item, whether it is able, and the chance of it over all such items."""

    items: Items
    flips: Floats
    chance: Floats
    able: npt.NDArray[np.bool_]

    @classmethod
    def new(cls, rng: np.random.Generator, items: Items, cell: Cell, weak: Sequence[int]) -> Student:
        """A champion, of which the skills `weak` have room to gain."""
        low, high = FLIPS.get(cell.flips, (0.0, 0.0))
        by_skill = rng.uniform(low, high, cell.skills)
        if cell.variant == "wavering":
            by_skill = np.clip(rng.gamma(1.56, 0.064, cell.skills), 0.005, 0.4)
        flips, chance = items.of_skills(by_skill), items.of_skills(rng.uniform(0.4, 0.88, cell.skills))
        hard = items.needs[:, list(weak)].any(axis=1)
        chance[hard] = rng.uniform(0.35, 0.5)
        return cls(items, flips, chance, rng.random(len(chance)) < chance)

    def after(self, rng: np.random.Generator, gain: Floats, loss: Floats) -> Student:
        """The next student: by item, expected gains and losses in points of accuracy, and flips either
        way.
        """
        unit = 1.0 if self.items.samples == 1 else 2 * SURE - 1
        flips = np.minimum(self.flips, 2 * np.minimum(self.chance, 1 - self.chance))
        gains, losses = (
            np.minimum(flips / 2 + gain / unit, 1 - self.chance),
            np.minimum(flips / 2 + loss / unit, self.chance),
        )
        draw = rng.random(len(self.able))
        able = np.where(
            self.able,
            draw >= losses / np.maximum(self.chance, 1e-9),
            draw < gains / np.maximum(1 - self.chance, 1e-9),
        )
        return Student(self.items, self.flips, self.chance + gains - losses, able)


def planned(
    rng: np.random.Generator, items: Items, flips: float, candidates: npt.NDArray[np.intp]
) -> tuple[list[int], float]:
    """Two targets and the gain in points: a pair that the gate has the items for, or else the two best
    measured candidates.
    """
    gain = float(rng.uniform(0.1, 0.3))
    for _ in range(20):
        pair = rng.choice(candidates, 2, replace=False)
        pooled = int(items.needs[:, pair].any(axis=1).sum())
        if (
            items.counts[pair].min() >= GateSettings().min_items
            and power_of_gain(pooled, gain, ALPHA, flips) >= 0.95
        ):
            return pair.tolist(), gain
    best = candidates[np.argsort(-items.counts[candidates])[:2]]
    return best.tolist(), gain


@dataclass
class Tally:
    """What came of a cell's cases; scenarios of several rounds count cases, not rounds."""

    cases: int = 0
    opened: int = 0
    lost: int = 0
    within: int = 0
    closed_by: dict[str, int] = field(default_factory=dict)

    def add(self, verdict: GateVerdict) -> None:
        self.cases += 1
        self.opened += verdict.promote
        self.lost += by_loss(verdict)
        for kind in {row.kind for row in verdict.table if row.passed is False}:
            self.closed_by[kind] = self.closed_by.get(kind, 0) + 1


def by_loss(verdict: GateVerdict) -> bool:
    """Whether a loss, proven or not ruled out, closed the gate."""
    return any(row.passed is False and row.kind != "targets" for row in verdict.table)


@lru_cache(maxsize=ITEM_SETS)
def item_set(variant: str, skills: int, items: int, seed: int) -> Items:
    """A held-out set; cells of the same shape share theirs."""
    return Items(np.random.default_rng([seed, *variant.encode(), skills, items]), variant, skills, items)


def run(cell: Cell, cases: int, seed: int) -> Iterator[Tally | None]:
    """Simulate a cell; yields None after each case, the tally at the end (without cases when no skill has the
    items asked for).
    """
    rng, tally = np.random.default_rng([seed, *cell_seed(cell)]), Tally()
    for case in range(cases):
        items = item_set(cell.variant, cell.skills, cell.items, seed * ITEM_SETS + case * ITEM_SETS // cases)
        one_case(rng, items, cell, tally)
        yield None
    yield tally


def cell_seed(cell: Cell) -> tuple[int, ...]:
    """Numbers for the random generator: a cell's cases do not depend on which others are run."""
    return (*(f"{cell.scenario}{cell.variant}{cell.flips}".encode()), cell.skills, cell.items)


def one_case(rng: np.random.Generator, items: Items, cell: Cell, tally: Tally) -> None:
    """Draw targets and what is harmed, let the students answer, judge."""
    harmed: list[int] = []
    if cell.scenario in LEAST:
        able = _harmable(items, cell)
        if not able:
            return
        harmed = able[int(rng.integers(len(able)))]
    if cell.scenario.startswith("creeping"):
        creeping(rng, items, cell, tally, harmed[0])
        return
    flips = float(np.mean(FLIPS.get(cell.flips, (0.1,))))
    candidates = np.array([skill for skill in np.flatnonzero(items.counts >= 20) if skill not in harmed])
    if len(candidates) < 2:
        return
    targets, gain = planned(rng, items, flips, candidates)
    if cell.scenario == "good, any targets":
        targets = rng.choice(candidates, 2, replace=False).tolist()
    champion = Student.new(rng, items, cell, targets)
    history: list[Evaluation] = []
    for _ in range(5 if cell.scenario == "good, later" else 0):
        history.append(items.evaluation(rng, champion.able))
        champion = champion.after(rng, np.zeros(cell.items), np.zeros(cell.items))
    taught = items.needs[:, targets].any(axis=1)
    gains, losses = np.where(taught, gain, 0.0), np.zeros(cell.items)
    if harmed:
        hurt = items.needs[:, harmed].all(axis=1)
        losses[hurt] = 0.2 if cell.scenario.startswith("20") else 0.1
        gains[hurt] = 0.0
    elif cell.scenario == "10 on several":
        losses[~taught & (items.per_item > 1)] = 0.1
    elif cell.scenario == "3 on all":
        losses[~taught] = 0.03
    elif cell.scenario == "equal":
        gains[:] = 0.0
    challenger = champion.after(rng, gains, losses)
    first, second = items.evaluation(rng, champion.able), items.evaluation(rng, challenger.able)
    tally.add(
        judge(
            first, second, [items.names[skill] for skill in targets], weights=items.weights, history=history
        )
    )


def _harmable(items: Items, cell: Cell) -> list[list[int]]:
    """The skills, or pairs of skills, that have the items which the scenario asks for."""
    least = LEAST[cell.scenario]
    if cell.scenario != "20 on one pair":
        return [[skill] for skill in np.flatnonzero(items.counts >= least).tolist()]
    needs = items.needs.astype(np.float32)  # whose product is fast
    together = needs.T @ needs
    return np.argwhere(np.triu(together, 1) >= least).tolist()


def creeping(rng: np.random.Generator, items: Items, cell: Cell, tally: Tally, harmed: int) -> None:
    """Ten rounds that each lose 3 points on one skill. `lost`: stopped by a loss within four; `within`: never
    10 points below its best.
    """
    settings = (
        GateSettings(protected=(items.names[harmed],)) if "protected" in cell.scenario else GateSettings()
    )
    others = np.array([skill for skill in np.flatnonzero(items.counts >= 20) if skill != harmed])
    champion = Student.new(rng, items, cell, [])
    kept, below, stopped = items.evaluation(rng, champion.able), 0, False
    history: list[Evaluation] = []
    hurt = items.needs[:, harmed]
    for place in range(ROUNDS):
        room = others[[champion.chance[items.needs[:, skill]].mean() < 0.7 for skill in others]]
        targets, gain = planned(rng, items, 0.1, room if len(room) > 1 else others)
        taught = items.needs[:, targets].any(axis=1) & ~hurt
        challenger = champion.after(rng, np.where(taught, gain, 0.0), np.where(hurt, 0.03, 0.0))
        answers = items.evaluation(rng, challenger.able)
        verdict = judge(
            kept,
            answers,
            [items.names[skill] for skill in targets],
            settings,
            weights=items.weights,
            history=history,
        )
        if verdict.promote:
            history.append(kept)
            champion, kept, below = challenger, answers, below + 3
        stopped |= place < 4 and by_loss(verdict)
        if below >= 12:
            break
    tally.cases += 1
    tally.lost += stopped
    tally.within += below <= 10
