"""Difficulty filters of the offline method: is an answer right? The first filter with an opinion decides (paper section 3.2)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from loop.offline.bench import StepRewards
from loop.offline.grading import Grade, final_text

Opinion = Literal["correct", "incorrect"]


@dataclass(frozen=True)
class Case:
    """One answer on trial, with all answers to its question. `gold` is empty where the right answer is not known."""

    question: str
    gold: str
    response: str
    samples: Sequence[str]


DifficultyFilter: TypeAlias = Callable[[Case], Opinion | None]


def gold_filter(grade: Grade) -> DifficultyFilter:
    """Compares with the right answer, where it is known."""

    def assess(case: Case) -> Opinion | None:
        right = grade(case.question, case.gold, case.response) if case.gold else None
        return None if right is None else ("correct" if right else "incorrect")

    return assess


def consistency_filter(min_votes: int, canonical: Callable[[str], str]) -> DifficultyFilter:
    """Wrong when the commonest final answer of all samples occurs fewer than `min_votes` times, or this one is another.

    No opinion on a single sample. The paper's rule is the first half: 5 samples, fewer than 2 equal.
    """

    def assess(case: Case) -> Opinion | None:
        if len(case.samples) < 2:
            return None
        answers = Counter(canonical(final_text(text)) for text in case.samples)
        commonest, votes = min(answers.items(), key=lambda pair: (-pair[1], pair[0]))
        return "correct" if votes >= min_votes and canonical(final_text(case.response)) == commonest else "incorrect"

    return assess


def prm_filter(step_rewards: StepRewards, tau1: float, tau2: float) -> DifficultyFilter:
    """The paper's rule on the rewards of the steps; an answer without a step is wrong."""

    def assess(case: Case) -> Opinion | None:
        return "incorrect" if is_difficult(step_rewards(case.question, case.response), tau1, tau2) else "correct"

    return assess


def is_difficult(rewards: Sequence[float], tau1: float, tau2: float) -> bool:
    """`r_t <= tau1` or `mean(r) <= tau1` or any earlier `r_i <= tau2` (paper section 3.2).

    >>> is_difficult([0.9, 0.95], 0.85, 0.7), is_difficult([0.7, 0.99, 0.99], 0.85, 0.7), is_difficult([0.99, 0.8], 0.85, 0.7)
    (False, True, True)
    """
    if not rewards:
        return True
    return rewards[-1] <= tau1 or sum(rewards) / len(rewards) <= tau1 or any(reward <= tau2 for reward in rewards[:-1])


def steps(response: str) -> list[str]:
    r"""The steps of a response: its parts between blank lines.

    >>> steps("a\n\nb\nc\n \nd")
    ['a', 'b\nc', 'd']
    """
    return [part.strip() for part in re.split(r"\n\s*\n", response) if part.strip()]
