"""Difficulty filters: was this answer right? Asked in order of trust; the first filter that has an opinion
decides.

Gold answers are checked where the application knows them, then what the user said, then the teacher's own
verdict. Agreement between several samples and process reward models (STAT section 3.2) are in
`graphs.filters.chain`, with the chain by names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from graphs.teacher import Diagnosis
from streams.events import StudentOutput

Opinion = Literal["correct", "incorrect"]
NOBODY = "none"


class Assessor(Protocol):
    """One difficulty filter. `name` is stored with every diagnosis it decided."""

    @property
    def name(self) -> str: ...

    def assess(self, output: StudentOutput, diagnose: Callable[[], Diagnosis]) -> Opinion | None:
        """Right, wrong, or `None` for no opinion. `diagnose()` asks the teacher; further calls for one output
        are free."""


@dataclass(frozen=True)
class GoldAnswer:
    """Compares with the gold answer, where there is one. `grade(question, gold, answer)` may return `None`:
    cannot tell."""

    grade: Callable[[str, str, str], bool | None]
    name: str = "gold"

    def assess(self, output: StudentOutput, diagnose: Callable[[], Diagnosis]) -> Opinion | None:
        if output.gold is None:
            return None
        right = self.grade(output.question, output.gold, output.answer)
        return None if right is None else _opinion(right)


@dataclass(frozen=True)
class Feedback:
    """Believes the user who received the answer."""

    name: str = "feedback"

    def assess(self, output: StudentOutput, diagnose: Callable[[], Diagnosis]) -> Opinion | None:
        return None if output.feedback is None else _opinion(output.feedback == "up")


@dataclass(frozen=True)
class TeacherVerdict:
    """Asks the teacher; its reply is also the diagnosis, so a wrong answer costs one call, not two."""

    name: str = "teacher"

    def assess(self, output: StudentOutput, diagnose: Callable[[], Diagnosis]) -> Opinion | None:
        verdict = diagnose().verdict
        return None if verdict == "abstained" else verdict


def first_opinion(
    chain: Sequence[Assessor], output: StudentOutput, diagnose: Callable[[], Diagnosis]
) -> tuple[Opinion | None, str]:
    """The opinion of the first filter that has one, and that filter's name; `(None, "none")` when nobody
    knows."""
    for assessor in chain:
        opinion = assessor.assess(output, diagnose)
        if opinion is not None:
            return opinion, assessor.name
    return None, NOBODY


def _opinion(right: bool) -> Opinion:
    return "correct" if right else "incorrect"
