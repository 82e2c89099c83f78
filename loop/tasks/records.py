"""Rows of the files that say which skills there are and which question needs which (docs/stat.md)."""

from __future__ import annotations

from typing import Literal

from agent.items import Frozen


class CatalogRow(Frozen):
    """One skill (paper section 3.1). `subjects` are those whose questions may need it; empty: all."""

    skill: str
    description: str = ""
    subjects: tuple[str, ...] = ()


class LabelRow(Frozen):
    """The skills one question needs. `source`: the data, the teacher, or nobody (the teacher abstained or
    failed)."""

    question_id: str
    part: Literal["pool", "validation"]
    skills: tuple[str, ...]
    source: Literal["given", "teacher", "none"]
    discarded: int = 0
    error: str = ""
