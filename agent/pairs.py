"""Which skills fail together: a student may master two skills and not their combination, which no row of the
profile shows (docs/decisions/0036-replay-keeps-compositions.md)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

from agent.beta import quantile


@dataclass(frozen=True, slots=True)
class PairMisses:
    """Answers to questions that need both skills, and how many of them were wrong. `low` and `high`: the 90 %
    interval of that share (Jeffreys' prior). `expected`: the share if the skills failed independently of one
    another, by the answers to questions that need one of them alone; None where there are none."""

    pair: tuple[str, str]
    answers: int
    wrong: int
    low: float
    high: float
    expected: float | None

    @property
    def worse_together(self) -> bool:
        """Whether the whole interval lies above what is expected."""
        return self.expected is not None and self.low > self.expected


def pair_misses(judged: Iterable[tuple[Sequence[str], bool]], least: int = 20) -> list[PairMisses]:
    """The pairs of skills with `least` answers or more, those first that fail most often beyond what is
    expected. `judged`: by answer the skills that its question needs, and whether it is wrong.

    >>> alone = [(("add",), False)] * 30 + [(("gcd",), False)] * 30
    >>> [row] = pair_misses(alone + [(("add", "gcd"), n < 12) for n in range(20)])
    >>> row.pair, row.wrong, row.expected, row.worse_together
    (('add', 'gcd'), 12, 0.0, True)
    """
    asked, wrong = Counter[tuple[str, ...]](), Counter[tuple[str, ...]]()
    for needed, failed in judged:
        skills = sorted(set(needed))
        for group in (tuple(skills),) if len(skills) == 1 else combinations(skills, 2):
            asked[group] += 1
            wrong[group] += failed
    rows = []
    for group, answers in asked.items():
        if len(group) == 1 or answers < least:
            continue
        first, second = group
        a, b = wrong[group] + 0.5, answers - wrong[group] + 0.5
        alone = [(asked[skill,], wrong[skill,]) for skill in group]
        expected = None
        if all(count for count, _ in alone):
            (n, missed), (m, lost) = alone
            expected = 1 - (1 - missed / n) * (1 - lost / m)
        rows.append(
            PairMisses(
                (first, second), answers, wrong[group], quantile(0.05, a, b), quantile(0.95, a, b), expected
            )
        )
    return sorted(rows, key=lambda row: (-(row.wrong / row.answers - (row.expected or 0.0)), row.pair))
