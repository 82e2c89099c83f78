"""Which skills fail together: a student may master two skills and not their combination, which no row of the
profile shows (docs/decisions/0036-replay-keeps-compositions.md)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from agent.beta import jeffreys


@dataclass(frozen=True, slots=True)
class PairMisses:
    """Answers to questions that need these two skills and no other, and how many were wrong. `low`, `high`:
    the 90 % interval of that share (Jeffreys' prior). `expected`: the share if the skills failed
    independently of one another, by the answers to questions that need one of them alone, `at_most` with the
    upper ends of their intervals; None where there are too few of these."""

    pair: tuple[str, str]
    answers: int
    wrong: int
    low: float
    high: float
    expected: float | None
    at_most: float | None

    @property
    def worse_together(self) -> bool:
        """Whether the whole interval lies above what may be expected."""
        return self.at_most is not None and self.low > self.at_most


def pair_misses(judged: Iterable[tuple[Sequence[str], bool]], least: int = 20) -> list[PairMisses]:
    """The pairs of skills with `least` answers or more, those first that fail most often beyond what is
    expected; nothing is expected where a skill has fewer answers alone. `judged`: by answer the skills that
    its question needs, and whether it is wrong.

    >>> alone = [(("add",), False)] * 30 + [(("gcd",), False)] * 30
    >>> [row] = pair_misses(alone + [(("add", "gcd"), n < 12) for n in range(20)])
    >>> row.pair, row.wrong, row.expected, row.worse_together
    (('add', 'gcd'), 12, 0.0, True)
    """
    asked, wrong = Counter[tuple[str, ...]](), Counter[tuple[str, ...]]()
    for needed, failed in judged:
        skills = sorted(set(needed))
        if len(skills) in (1, 2):  # a third skill's failures would be charged to the pair
            asked[tuple(skills)] += 1
            wrong[tuple(skills)] += failed
    rows = []
    for group, answers in asked.items():
        if len(group) == 1 or answers < least:
            continue
        first, second = group
        low, high = jeffreys(wrong[group], answers - wrong[group])
        expected = at_most = None
        if all(asked[skill,] >= least for skill in group):
            right = [1 - wrong[skill,] / asked[skill,] for skill in group]
            surely = [1 - jeffreys(wrong[skill,], asked[skill,] - wrong[skill,])[1] for skill in group]
            expected, at_most = 1 - right[0] * right[1], 1 - surely[0] * surely[1]
        rows.append(PairMisses((first, second), answers, wrong[group], low, high, expected, at_most))
    return sorted(rows, key=lambda row: (-(row.wrong / row.answers - (row.expected or 0.0)), row.pair))
