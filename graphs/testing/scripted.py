"""A teacher that says what a test tells it to, with faults to order. Instant, deterministic, safe to call
from several threads."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from agent.budget import Usage
from agent.catalog import Skill
from agent.items import PoolItem
from graphs.teacher import (
    Clusters,
    Diagnosis,
    Labels,
    SkillName,
    Solution,
    Solutions,
    TeacherUnavailable,
    Written,
)

Method = Literal["label", "diagnose", "write", "solve", "name_skill", "cluster", "rewrite"]
ONE_CALL = Usage(calls=1)


@dataclass(frozen=True)
class Call:
    """One call that reached the teacher: the method and the text it was about (the question, or the skill for
    `write`)."""

    method: Method
    subject: str


def numbered_questions(skill: str, references: Sequence[PoolItem], count: int, seed: int) -> tuple[str, ...]:
    """Distinct questions that name their skill, their number and their seed."""
    return tuple(f"New {skill} question {index} of series {seed}" for index in range(count))


def agreeing_solutions(question: str, count: int, seed: int) -> tuple[Solution, ...]:
    """Solutions with one and the same final answer."""
    return tuple(Solution(text=f"way {way}: {question}", answer=str(len(question))) for way in range(count))


def first_word(question: str) -> str:
    """The fine skill of a question is its first word."""
    return question.split(maxsplit=1)[0].casefold() if question.split() else ""


def first_names(names: Sequence[str], at_most: int) -> tuple[Skill, ...]:
    """The first names stand for all."""
    return tuple(Skill(name=name) for name in names[:at_most])


@dataclass
class ScriptedTeacher:
    """The fake of the `Teacher` and `CatalogTeacher` ports.

    A question that is not in `labels`, and a (question, answer) pair that is not in `diagnoses`, is an
    abstention. `unavailable[method]` calls raise `TeacherUnavailable` before the first one succeeds; `broken`
    texts (questions or answers) raise `ValueError` whenever they come by. Unknown skills, evidence that is
    not in the answer or labels that contradict each other are written straight into `labels` and `diagnoses`.
    `log` sees every call that reaches the teacher.

    >>> teacher = ScriptedTeacher(labels={"1+1?": ("add",)}, unavailable={"label": 1})
    >>> teacher.label("1+1?", ["add"])
    Traceback (most recent call last):
    graphs.teacher.TeacherUnavailable: label: ordered by the script
    >>> teacher.label("1+1?", ["add"]).skills
    ('add',)
    """

    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    diagnoses: Mapping[tuple[str, str], Diagnosis] | Callable[[str, str, Sequence[str]], Diagnosis] = field(
        default_factory=dict
    )
    writes: Callable[[str, Sequence[PoolItem], int, int], Sequence[str]] = numbered_questions
    solves: Callable[[str, int, int], Sequence[Solution]] = agreeing_solutions
    names: Callable[[str], str] = first_word
    clusters: Callable[[Sequence[str], int], Sequence[Skill]] = first_names
    unavailable: Mapping[Method, int] = field(default_factory=dict)
    broken: frozenset[str] = frozenset()
    usage: Usage = ONE_CALL
    log: Callable[[Call], None] | None = None
    name: str = "scripted"
    prompt_version: str = "1"

    def __post_init__(self) -> None:
        self.calls: list[Call] = []
        self._left = Counter(self.unavailable)
        self._lock = threading.Lock()

    def label(self, question: str, skills: Sequence[str]) -> Labels:
        self._called("label", question)
        return Labels(skills=tuple(self.labels.get(question, ())), usage=self.usage)

    def diagnose(self, question: str, answer: str, needed: Sequence[str], skills: Sequence[str]) -> Diagnosis:
        self._called("diagnose", question, answer)
        if callable(self.diagnoses):
            diagnosis = self.diagnoses(question, answer, needed)
        else:
            diagnosis = self.diagnoses.get((question, answer), Diagnosis(verdict="abstained"))
        return diagnosis.model_copy(update={"usage": self.usage})

    def write(self, skill: str, references: Sequence[PoolItem], count: int, seed: int) -> Written:
        self._called("write", skill)
        return Written(questions=tuple(self.writes(skill, references, count, seed)), usage=self.usage)

    def solve(self, question: str, count: int, seed: int) -> Solutions:
        self._called("solve", question)
        return Solutions(solutions=tuple(self.solves(question, count, seed)), usage=self.usage)

    def name_skill(self, question: str) -> SkillName:
        self._called("name_skill", question)
        return SkillName(name=self.names(question), usage=self.usage)

    def cluster(self, names: Sequence[str], at_most: int) -> Clusters:
        self._called("cluster", ", ".join(names))
        return Clusters(skills=tuple(self.clusters(names, at_most)), usage=self.usage)

    def rewrite(self, item: PoolItem, count: int, seed: int) -> Solutions:
        self._called("rewrite", item.question)
        ways = tuple(Solution(text=f"way {way}: {item.solution}", answer=item.answer) for way in range(count))
        return Solutions(solutions=ways, usage=self.usage)

    def count(self, method: Method) -> int:
        """How many calls of `method` reached the teacher, failed ones included."""
        with self._lock:
            return sum(call.method == method for call in self.calls)

    def _called(self, method: Method, *texts: str) -> None:
        call = Call(method, texts[0])
        with self._lock:
            self.calls.append(call)
            if self.log:
                self.log(call)
            if self._left[method] > 0:
                self._left[method] -= 1
                raise TeacherUnavailable(f"{method}: ordered by the script")
        if self.broken.intersection(texts):
            raise ValueError(f"{method} cannot read {texts[-1]!r}")
