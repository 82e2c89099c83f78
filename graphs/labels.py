"""Which skills a question needs: asked of the teacher once per question text, then remembered."""

from __future__ import annotations

import threading
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from agent.budget import Usage
from agent.catalog import MAX_SKILLS_PER_ITEM, SkillCatalog
from graphs.teacher import Labels, Teacher

_STRIPES = 64


class LabelCache(Protocol):
    """Remembers the skills of question texts. Called from several threads; losing an entry costs a teacher
    call, nothing else."""

    def get(self, question: str) -> tuple[str, ...] | None:
        """The skills of this exact text, or `None` when it was never labelled."""

    def put(self, question: str, skills: tuple[str, ...]) -> None:
        """Remember the skills of this text."""


class MemoryLabels:
    """A label cache that lasts as long as the process, with what is known already. A text that is known to
    need no skill is never asked about."""

    def __init__(self, known: Mapping[str, tuple[str, ...]] | None = None) -> None:
        self._skills = dict(known or {})

    def get(self, question: str) -> tuple[str, ...] | None:
        return self._skills.get(question)

    def put(self, question: str, skills: tuple[str, ...]) -> None:
        self._skills[question] = skills


@dataclass(frozen=True)
class Needed:
    """The skills a question needs, how many labels were thrown away on the way, and what asking cost (nothing
    when known)."""

    skills: tuple[str, ...]
    discarded: int = 0
    usage: Usage = field(default_factory=Usage)


def checked(reply: Labels, catalog: Container[str]) -> Needed:
    """What counts of a teacher's labels: those outside the catalog and beyond `MAX_SKILLS_PER_ITEM` are
    discarded and counted.

    >>> checked(Labels(skills=("gcd", "no such skill", "gcd")), {"gcd"})
    Needed(skills=('gcd',), discarded=1, usage=Usage(calls=0, prompt_tokens=0, completion_tokens=0, usd=0.0))
    """
    distinct = tuple(dict.fromkeys(reply.skills))
    skills = tuple(skill for skill in distinct if skill in catalog)[:MAX_SKILLS_PER_ITEM]
    return Needed(skills, len(distinct) - len(skills), reply.usage)


@dataclass(frozen=True)
class Labeller:
    """Labels questions with skills of the catalog.

    An abstention (no known skill) is not remembered, and neither is anything that names a skill the catalog
    no longer has: both are asked again.
    """

    teacher: Teacher
    catalog: SkillCatalog
    cache: LabelCache
    # One lock per stripe of questions: outputs of one batch that share a question wait for one call.
    _locks: tuple[threading.Lock, ...] = field(
        default_factory=lambda: tuple(threading.Lock() for _ in range(_STRIPES)), repr=False
    )

    def needed(self, question: str, offered: Sequence[str] | None = None) -> Needed:
        """The skills `question` needs, out of those offered (without them, the catalog); empty when the
        teacher abstains.

        Raises `TeacherUnavailable`.
        """
        with self._locks[hash(question) % _STRIPES]:
            known = self.cache.get(question)
            if known is not None and all(skill in self.catalog for skill in known):
                return Needed(known)
            labelled = checked(self.teacher.label(question, offered or self.catalog.names), self.catalog)
            if labelled.skills:
                self.cache.put(question, labelled.skills)
            return labelled
