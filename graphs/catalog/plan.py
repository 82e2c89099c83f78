"""What the catalog graph is given and what it gives back (stage 0 of STAT; paper section 3.1, after Didolkar
et al., arXiv 2405.12205)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property

from pydantic import Field, model_validator

from agent.budget import Usage
from agent.catalog import Skill, SkillCatalog
from agent.items import Frozen
from graphs.errors import GraphsError
from graphs.teacher import CatalogTeacher
from streams.crash import CrashPoint, no_crash

STEPS = ("name", "gather", "cluster", "relabel", "assemble")
CRASH_POINTS = tuple(f"catalog.{step}.{when}" for step in STEPS for when in ("start", "end"))


class CatalogError(GraphsError):
    """A catalog cannot be made; the message says why and what to do."""


class EmptyCatalog(CatalogError):
    """The teacher named no skill for any question."""


class ItemsChanged(CatalogError):
    """An interrupted run was given another plan or other questions than it began with. Use a new run id for
    them."""


class CatalogItem(Frozen):
    """A question to be labelled. Questions of one subject share a catalog; an empty subject is a subject
    too."""

    item_id: str
    question: str
    subject: str = ""


class CatalogPlan(Frozen):
    """At most `skills_per_subject` skills (the paper has 11 to 22), found from at most `names_per_prompt`
    fine names at once.

    `per_task` questions make one checkpointed task: what a crash repeats at most.
    """

    skills_per_subject: int = Field(default=20, ge=1)
    names_per_prompt: int = Field(default=150, ge=2)
    per_task: int = Field(default=8, ge=1)

    @model_validator(mode="after")
    def _shrinks(self) -> CatalogPlan:
        if self.names_per_prompt < 2 * self.skills_per_subject:
            raise ValueError(
                "names_per_prompt must be at least twice skills_per_subject "
                f"({self.skills_per_subject}), or merging has no end"
            )
        return self


class Catalogued(Frozen):
    """The catalogs by subject, the one to five skills of every labelled item, and the items the teacher gave
    no label.

    `unclustered` counts lists of names that the teacher could not group; their commonest names stand as they
    are.
    """

    subjects: Mapping[str, SkillCatalog]
    labels: Mapping[str, tuple[str, ...]]
    unlabelled: tuple[str, ...]
    unclustered: int
    usage: Usage

    @property
    def catalog(self) -> SkillCatalog:
        """All subjects in one: a name that several subjects have is one skill, with its first description."""
        skills: dict[str, Skill] = {}
        for catalog in self.subjects.values():
            for skill in catalog.skills:
                skills.setdefault(skill.name, skill)
        return SkillCatalog(skills=tuple(skills.values()))


@dataclass(frozen=True)
class CatalogContext:
    """What the graph works with. `gate` bounds how many tasks ask the teacher at once; `run_catalog` sets
    it."""

    teacher: CatalogTeacher
    items: Sequence[CatalogItem]
    crash: CrashPoint = no_crash
    gate: AbstractContextManager[object] = field(default_factory=nullcontext, repr=False)

    @cached_property
    def by_id(self) -> Mapping[str, CatalogItem]:
        """The items by id."""
        return {item.item_id: item for item in self.items}

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all questions: an interrupted run resumes only with the same ones."""
        digest = hashlib.sha256()
        for item in self.items:
            digest.update(repr((item.item_id, item.question, item.subject)).encode())
        return digest.hexdigest()
