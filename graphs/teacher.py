"""The teacher port: everything the graphs ask of a teacher, whether a language model or the demo's symbolic
one.

Student text and questions are data for a teacher, never instructions. Every reply carries its cost. A teacher
that cannot answer *abstains* (verdict "abstained", or an empty list): an abstention changes nothing in the
profile and is counted. A teacher that fails for a passing reason (rate limit, time-out, 503) raises
`TeacherUnavailable`; the caller retries later.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from agent.budget import BudgetExceeded, UnpricedModel, Usage
from agent.catalog import Skill
from agent.items import Frozen, PoolItem
from graphs.errors import GraphsError
from streams.events import AnswerVerdict


class TeacherUnavailable(GraphsError):
    """The teacher cannot answer now; nothing is wrong with the input. Retry with back-off.

    `exhausted`: the teacher has retried already, so whoever catches it resumes later and does not retry at
    once (retries in one layer).
    """

    exhausted = False


class TeacherExhausted(TeacherUnavailable):
    """The same, after the teacher's own retries."""

    exhausted = True


class TeacherMisconfigured(GraphsError):
    """The teacher's server refuses us for good: a key, a model name, a capability. The message names the
    setting; no retry helps."""


STOPS = (TeacherUnavailable, TeacherMisconfigured, BudgetExceeded, UnpricedModel)
"""Errors that stop all work: they say nothing about the item at hand, and starting again later resumes."""


class _Reply(Frozen):
    usage: Usage = Usage()


class Labels(_Reply):
    """The skills a question needs, at most five; empty when the teacher abstains."""

    skills: tuple[str, ...]


class Diagnosis(_Reply):
    """What a teacher says of one answer. `missing` is raw: the graph constrains it to the needed skills."""

    verdict: AnswerVerdict
    evidence: str = ""
    missing: tuple[str, ...] = ()


class Solution(Frozen):
    """One worked solution and its final answer."""

    text: str
    answer: str


class SkillName(_Reply):
    """The one fine skill that a question exercises most; empty when the teacher abstains."""

    name: str


class Clusters(_Reply):
    """Skills that cover a list of fine names; empty when the teacher abstains."""

    skills: tuple[Skill, ...]


class Written(_Reply):
    """New questions for one skill (paper section 3.3, STAT-Syn)."""

    questions: tuple[str, ...]


class Solutions(_Reply):
    """Independent solutions of one question, for the consistency filter."""

    solutions: tuple[Solution, ...]


class Teacher(Protocol):
    """A teacher. Methods may be called from several threads at once."""

    @property
    def name(self) -> str: ...

    @property
    def prompt_version(self) -> str: ...

    def label(self, question: str, skills: Sequence[str]) -> Labels:
        """Name the skills of the catalog `skills` (names) that `question` needs."""

    def diagnose(self, question: str, answer: str, needed: Sequence[str], skills: Sequence[str]) -> Diagnosis:
        """Judge a student's `answer`; name the skills it failed to apply. Never sees a gold solution."""

    def write(self, skill: str, references: Sequence[PoolItem], count: int, seed: int) -> Written:
        """Write `count` new questions that need `skill` (empty: what the references need), different in kind
        from `references` and similarly difficult."""

    def solve(self, question: str, count: int, seed: int) -> Solutions:
        """Solve `question` `count` times independently."""

    def rewrite(self, item: PoolItem, count: int, seed: int) -> Solutions:
        """Rewrite the worked solution of `item` `count` times, each with the same final answer."""


@runtime_checkable
class PaidTeacher(Teacher, Protocol):
    """A teacher that enters its own calls in the ledger (`graphs.chat.meter`), so that workers must not."""

    def for_round(self, round_id: str | None) -> Teacher:
        """The same teacher, its calls booked on this round."""


@runtime_checkable
class CatalogTeacher(Teacher, Protocol):
    """A teacher that can also make a catalog: what the offline method needs beyond the loop."""

    def name_skill(self, question: str) -> SkillName:
        """Name the fine skill that `question` exercises (paper section 3.1, after arXiv 2405.12205)."""

    def cluster(self, names: Sequence[str], at_most: int) -> Clusters:
        """Group fine skill names into at most `at_most` skills with descriptions."""
