"""The demo's traffic: an endless numbered stream of questions whose mixture of skills drifts at given
question indices."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from random import Random

from loop.tasks.world.world import ORIGINAL, Mixture, Problem, draw

FIRST_SHIFT_SKILLS: tuple[str, ...] = ("left", "equation")
SECOND_SHIFT_SKILLS: tuple[str, ...] = ("average", "fraction")
FIRST_SHIFT = ORIGINAL.shifted(dict.fromkeys(FIRST_SHIFT_SKILLS, 0.2))
SECOND_SHIFT = ORIGINAL.shifted(dict.fromkeys(SECOND_SHIFT_SKILLS, 0.2))


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
