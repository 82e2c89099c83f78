"""What a student is for: the catalog, the pool, the held-out items, how answers are graded, and who teaches.

The demo's world is one task; a task of files (MATH, GSM8K) is another. The loop knows only this.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agent.catalog import SkillCatalog, SkillMap
from agent.items import HeldOutItem, PoolItem
from graphs.teacher import Teacher


@dataclass(frozen=True)
class Task:
    """`grade(expected, answer)` says whether a final answer is right; `base_dir` holds the untrained student."""

    catalog: SkillCatalog
    pool: tuple[PoolItem, ...]
    held_out: tuple[HeldOutItem, ...]
    grade: Callable[[str, str], bool]
    teacher: Teacher
    base_dir: Path

    @property
    def skill_map(self) -> SkillMap:
        """skill -> pool items, multi-label."""
        return SkillMap(((item.item_id, item.skills) for item in self.pool), self.catalog)
