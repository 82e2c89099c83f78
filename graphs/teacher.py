"""The teacher port: everything the graphs ask of a teacher, whether a language model or the demo's symbolic one.

Student text and questions are data for a teacher, never instructions. Every reply carries its cost. A teacher that cannot
answer *abstains* (verdict "abstained", or an empty list): an abstention changes nothing in the profile and is counted.
A teacher that fails for a passing reason (rate limit, time-out, 503) raises `TeacherUnavailable`; the caller retries later.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict

from agent.budget import Usage
from agent.items import PoolItem

Verdict = Literal["correct", "incorrect", "abstained"]


class TeacherUnavailable(Exception):
    """The teacher cannot answer now; nothing is wrong with the input. Retry with back-off."""


class _Reply(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    usage: Usage = Usage()


class Labels(_Reply):
    """The skills a question needs, at most five; empty when the teacher abstains."""

    skills: tuple[str, ...]


class Diagnosis(_Reply):
    """What a teacher says of one answer. `missing` is raw: the graph constrains it to the needed skills."""

    verdict: Verdict
    evidence: str = ""
    missing: tuple[str, ...] = ()


class Solution(BaseModel):
    """One worked solution and its final answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str
    answer: str


class Written(_Reply):
    """New questions for one skill (paper section 3.3, STAT-Syn)."""

    questions: tuple[str, ...]


class Solutions(_Reply):
    """Independent solutions of one question, for the consistency filter."""

    solutions: tuple[Solution, ...]


class Teacher(Protocol):
    """A teacher. Methods may be called from several threads at once."""

    name: str
    prompt_version: str

    def label(self, question: str, skills: Sequence[str]) -> Labels:
        """Name the skills of the catalog `skills` (names) that `question` needs."""

    def diagnose(self, question: str, answer: str, needed: Sequence[str], skills: Sequence[str]) -> Diagnosis:
        """Judge a student's `answer`; name the skills it failed to apply. Never sees a gold solution."""

    def write(self, skill: str, references: Sequence[PoolItem], count: int, seed: int) -> Written:
        """Write `count` new questions that need `skill`, different in kind from `references` and similarly difficult."""

    def solve(self, question: str, count: int, seed: int) -> Solutions:
        """Solve `question` `count` times independently."""
