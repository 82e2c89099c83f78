"""Difficulty filters that need no gold answer, and the chain of filters by names from the configuration.

The paper measures agreement with correctness (Qwen2.5-1.5B-Instruct): consistency of 5 samples 79.8 %,
process rewards 78.0 %, length 74.2 % (STAT, arXiv 2510.10023, section 3.2 and appendix). With gold answers,
checking them is the best filter.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

from pydantic import Field

from agent.settings import Settings
from agent.table import Table
from graphs.filters.assess import Assessor, Feedback, GoldAnswer, Opinion, TeacherVerdict
from graphs.filters.final_answers import canonical
from graphs.teacher import Diagnosis
from streams.events import StudentOutput

T = TypeVar("T")
TAU1, TAU2 = 0.85, 0.7  # the paper's thresholds
Sample = Callable[[StudentOutput, int], Sequence[str]]
"""From an output and a number to so many answers, at most, of its student to its question, drawn
independently."""


class FilterSettings(Settings):
    """How answers are judged and diagnosed, online and by `skillloop stat`.

    `tau1`, `tau2`: thresholds of the process reward model in the folder `prm`. `min_votes`: the filter
    `consistency` calls an answer wrong when the commonest of the samples occurs less often. `constrain`
    accepts only missing skills that the question's labels name (agent/profile.py); false is the paper's way:
    any skill that was offered, which suits questions with a single label.
    """

    prm: Path | None = None
    tau1: float = Field(default=TAU1, ge=0, le=1)
    tau2: float = Field(default=TAU2, ge=0, le=1)
    min_votes: int = Field(default=2, gt=0)
    constrain: bool = True


class StepRewards(Protocol):
    """A process reward model: the probability in [0, 1] that each step of a solution is right, one per step;
    None: it cannot read it."""

    def __call__(self, question: str, steps: Sequence[str]) -> Sequence[float] | None: ...


def steps_of(answer: str) -> list[str]:
    r"""The steps of an answer: its parts between blank lines.

    >>> steps_of("one\n\ntwo\nstill two\n \n\nthree\n")
    ['one', 'two\nstill two', 'three']
    """
    return [part.strip() for part in re.split(r"\n[ \t]*\n", answer) if part.strip()]


def is_difficult(rewards: Sequence[float], tau1: float = TAU1, tau2: float = TAU2) -> bool:
    """The paper's rule: the last step or the mean is at most `tau1`, or an earlier step at most `tau2`.
    Raises for no rewards.

    >>> is_difficult([0.9, 0.95]), is_difficult([0.7, 0.99, 0.99])
    (False, True)
    >>> is_difficult([0.99, 0.85]), is_difficult([0.8, 0.8, 0.9])
    (True, True)
    """
    if not rewards:
        raise ValueError("a solution without steps has no rewards")
    *earlier, last = rewards
    return last <= tau1 or sum(rewards) / len(rewards) <= tau1 or any(reward <= tau2 for reward in earlier)


@dataclass(frozen=True)
class ProcessRewards:
    """Believes a process reward model. No opinion on an answer without steps, or one that the model cannot
    read.

    Raises `ValueError` for a wrong number of rewards.
    """

    rewards: StepRewards
    tau1: float = TAU1
    tau2: float = TAU2
    name: str = "prm"

    def assess(self, output: StudentOutput, diagnose: Callable[[], Diagnosis]) -> Opinion | None:
        steps = steps_of(output.answer)
        rewards = self.rewards(output.question, steps) if steps else None
        if rewards is None:
            return None
        if len(rewards) != len(steps):
            raise ValueError(f"the reward model gave {len(rewards)} rewards for {len(steps)} steps")
        return "incorrect" if is_difficult(rewards, self.tau1, self.tau2) else "correct"


@dataclass(frozen=True)
class SelfConsistency:
    """Asks the student `samples` times: fewer than `at_least` equal final answers mean that it cannot do the
    question (paper: 5, 2). No opinion where there are not two samples to compare.

    With `own` the answer at hand must also be the commonest one.
    """

    sample: Sample
    samples: int = 5
    at_least: int = 2
    own: bool = False
    form: Callable[[str], str] = canonical
    name: str = "consistency"

    def assess(self, output: StudentOutput, diagnose: Callable[[], Diagnosis]) -> Opinion | None:
        drawn = self.sample(output, self.samples)
        if len(drawn) < 2:
            return None
        answers = Counter(form for form in map(self.form, drawn) if form)
        commonest = max(answers.values(), default=0)
        if commonest < self.at_least:
            return "incorrect"
        return "incorrect" if self.own and answers[self.form(output.answer)] < commonest else "correct"


@dataclass(frozen=True)
class Unanimous:
    """Has an opinion only when all of its filters have the same one."""

    filters: tuple[Assessor, ...]

    @property
    def name(self) -> str:
        return "&".join(part.name for part in self.filters)

    def assess(self, output: StudentOutput, diagnose: Callable[[], Diagnosis]) -> Opinion | None:
        opinions = {part.assess(output, diagnose) for part in self.filters}
        return opinions.pop() if len(opinions) == 1 else None


@dataclass(frozen=True)
class FilterParts:
    """What filters need from outside; a filter whose part is missing cannot be chosen."""

    grade: Callable[[str, str, str], bool | None] | None = None
    sample: Sample | None = None
    rewards: StepRewards | None = None
    samples: int = 5
    settings: FilterSettings = field(default_factory=FilterSettings)


def _needed(name: str, part: T | None, what: str) -> T:
    if part is None:
        raise ValueError(
            f"the difficulty filter {name!r} needs {what}, which this configuration does not have"
        )
    return part


def _gold(parts: FilterParts) -> Assessor:
    return GoldAnswer(_needed("gold", parts.grade, "a grader"))


def _consistency(parts: FilterParts) -> Assessor:
    sample = _needed("consistency", parts.sample, "a student to sample from")
    return SelfConsistency(sample, parts.samples, parts.settings.min_votes)


def _prm(parts: FilterParts) -> Assessor:
    rewards = _needed("prm", parts.rewards, "a process reward model")
    return ProcessRewards(rewards, parts.settings.tau1, parts.settings.tau2)


FILTERS: Table[Callable[[FilterParts], Assessor]] = Table(
    "difficulty filter",
    {
        "gold": _gold,
        "feedback": lambda parts: Feedback(),
        "consistency": _consistency,
        "prm": _prm,
        "teacher": lambda parts: TeacherVerdict(),
    },
)
"""The filters that can be chosen, by name; a plugin adds its own (docs/extending.md)."""


def filters(names: Sequence[str], parts: FilterParts) -> tuple[Assessor, ...]:
    """The chain of filters in this order of trust; `a&b` is one filter that needs both to agree.

    Raises `ValueError` for an unknown name, or one whose part is missing.

    >>> [one.name for one in filters(["gold", "feedback&teacher"], FilterParts(grade=lambda q, g, a: g == a))]
    ['gold', 'feedback&teacher']
    """
    if not names:
        raise ValueError("name at least one difficulty filter, for example gold, feedback, teacher")
    return tuple(_filter(name, parts) for name in names)


def _filter(name: str, parts: FilterParts) -> Assessor:
    if "&" in name:
        return Unanimous(tuple(_filter(part.strip(), parts) for part in name.split("&")))
    return FILTERS.choose(name)(parts)
