"""The things that are taught: questions, worked solutions, training examples and where each came from."""

from __future__ import annotations

from operator import not_
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from agent.budget import Usage

JsonObject = dict[str, Any]
"""A JSON object as it is read or written."""
Strategy = Literal["select", "synthesize", "replay"]


class Frozen(BaseModel):
    """Base of every value object here: immutable, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class PoolItem(Frozen):
    """A question with a worked solution that may be trained on (the paper's set P).

    `skills` holds every skill the question needs (multi-label, at most five; paper section 3.1).
    """

    item_id: str
    question: str
    solution: str
    answer: str
    skills: tuple[str, ...]


class HeldOutItem(Frozen):
    """A question that measures a student and must never be trained on. `stratum` names the evaluation set it
    belongs to."""

    item_id: str
    question: str
    answer: str
    skills: tuple[str, ...]
    stratum: str


class Provenance(Frozen):
    """Where one training example came from. A selected example with a `teacher` has its solution rewritten.

    `part` of a data plan and `cause`, the difficult question behind it, are left out of JSON where there are
    none.
    """

    strategy: Strategy
    skill: str | None
    source_ids: tuple[str, ...]
    teacher: str | None = None
    prompt_version: str | None = None
    usage: Usage = Usage()
    part: str = Field(default="", exclude_if=not_)
    cause: str | None = Field(default=None, exclude_if=not_)


class Example(Frozen):
    """One prompt-completion pair to train on."""

    example_id: str
    prompt: str
    completion: str
    skills: tuple[str, ...]
    provenance: Provenance
