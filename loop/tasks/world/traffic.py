"""The demo's traffic: an endless numbered stream of questions whose mixture of skills drifts at given
question indices."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

from loop.tasks.world.world import ORIGINAL, RARE, STUBBORN, Mixture, Problem, draw

FIRST_SHIFT_SKILLS: tuple[str, ...] = ("left", "equation")
SECOND_SHIFT_SKILLS: tuple[str, ...] = ("average", "fraction")
FIRST_SHIFT = ORIGINAL.shifted(dict.fromkeys(FIRST_SHIFT_SKILLS, 0.2))
SECOND_SHIFT = ORIGINAL.shifted(dict.fromkeys(SECOND_SHIFT_SKILLS, 0.2))


MISSING_SHARE = (0.06, 0.25)
EDGE_SHARE = (0.02, 0.06)
STUBBORN_SHARE = (0.05, 0.12)
POOL = (20, 300)


@dataclass(frozen=True)
class Drift:
    """Two shifts of the traffic, as the shares of the skills that each raises, and how many pool items there
    are of these skills."""

    shifts: tuple[Mapping[str, float], Mapping[str, float]]
    pool: Mapping[str, int]


def drawn_drift(seed: int) -> Drift:
    """A drift that can go well or badly, from the seed alone.

    Each shift raises two of the rare skills, which the shipped students lack, to a share of 6 to 25 % each.
    One of the two also raises a fifth to 2 to 6 %, where the policy may or may not act, and one raises the
    stubborn skill, which no round has lifted, to 5 to 12 %. The pool has 20 to 300 items of each raised
    skill, as many small pools as large ones: some are to be selected from, for others examples must be
    written.
    """
    rng = Random(f"drift:{seed}")
    *missing, edge = rng.sample(RARE, 5)
    shares = [rng.uniform(*MISSING_SHARE) for _ in missing]
    shifts = (
        dict(zip(missing[:2], shares[:2], strict=True)),
        dict(zip(missing[2:], shares[2:], strict=True)),
    )
    rng.choice(shifts)[edge] = rng.uniform(*EDGE_SHARE)
    rng.choice(shifts)[STUBBORN] = rng.uniform(*STUBBORN_SHARE)
    low, high = map(math.log, POOL)
    return Drift(shifts, {skill: round(math.exp(rng.uniform(low, high))) for skill in (*missing, edge)})


@dataclass(frozen=True)
class Phase:
    """A mixture that holds from question index `start` on."""

    start: int
    mixture: Mixture
    name: str = ""


DEFAULT_SCHEDULE: tuple[Phase, ...] = (
    Phase(0, ORIGINAL, "original"),
    Phase(1000, FIRST_SHIFT, "shift1"),
    Phase(3000, SECOND_SHIFT, "shift2"),
)


@dataclass(frozen=True)
class Traffic:
    """Questions of users, all from the traffic split. Question `index` depends on (seed, index) only: a
    stream can resume anywhere.

    Raises ValueError when the schedule's starts are not ascending from 0.
    """

    seed: int = 0
    schedule: tuple[Phase, ...] = DEFAULT_SCHEDULE

    def __post_init__(self) -> None:
        starts = [phase.start for phase in self.schedule]
        if not starts or starts[0] != 0 or starts != sorted(set(starts)):
            raise ValueError("a traffic schedule needs ascending starts, the first of them 0")

    def phase(self, index: int) -> Phase:
        """The phase that question `index` falls into."""
        if index < 0:
            raise ValueError("question indices start at 0")
        return self.schedule[bisect_right([phase.start for phase in self.schedule], index) - 1]

    def question(self, index: int) -> tuple[str, Problem]:
        """The id and the problem of question `index`."""
        mixture = self.phase(index).mixture
        return f"q-{self.seed}-{index:07d}", draw(Random(f"traffic:{self.seed}:{index}"), mixture, "traffic")
