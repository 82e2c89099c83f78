"""What a student is for: the catalog, the pool, the held-out items, how answers are graded, and who teaches.

The demo's world is one task; a task of files (MATH, GSM8K) is another. The loop knows only this.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from agent.catalog import SkillCatalog, SkillMap
from agent.items import HeldOutItem, PoolItem
from graphs.filters.final_answers import final_answer
from graphs.teacher import PaidTeacher, Teacher
from training.errors import HeldOutOverlap
from training.mix import normalised


def unchanged(question: str) -> str:
    """The prompt of a student that is asked with the bare question."""
    return question


def nothing_open() -> None:
    """The end of a task that holds nothing open."""


@dataclass(frozen=True)
class Task:
    """`grade(expected, answer)` says whether a final answer is right, None where it cannot tell; `base_dir`
    holds the untrained student.

    `prompt` is the form in which the student is asked. `teacher_of` is the teacher whose calls are booked on
    a round. `levels` are the difficulties of pool items, where known; `grader` names what `grade`
    is, so that no evaluation by another one is taken for its own. `final` reads the final answer of a worked
    solution. `close` ends what the task holds open.

    Raises `HeldOutOverlap` when a held-out question is in the pool: a gate on it would measure memory.
    """

    catalog: SkillCatalog
    pool: tuple[PoolItem, ...]
    held_out: tuple[HeldOutItem, ...]
    grade: Callable[[str, str], bool | None]
    teacher: Teacher
    base_dir: Path
    prompt: Callable[[str], str] = unchanged
    levels: Mapping[str, int] = field(default_factory=dict)
    grader: str = ""
    final: Callable[[str], str | None] = final_answer
    close: Callable[[], None] = field(default=nothing_open, repr=False)

    def __post_init__(self) -> None:
        trained_on = {normalised(item.question): item.item_id for item in self.pool}
        both = [
            (item.item_id, trained_on[key])
            for item in self.held_out
            if (key := normalised(item.question)) in trained_on
        ]
        if both:
            held_out, pool = both[0]
            raise HeldOutOverlap(
                f"{len(both)} of {len(self.held_out)} held-out questions are in the pool "
                f"(first: {held_out!r} is pool item {pool!r}); remove them from the pool"
            )

    @property
    def books_itself(self) -> bool:
        """Whether the teacher enters its calls in the ledger, so that the workers must not."""
        return isinstance(self.teacher, PaidTeacher)

    def teacher_of(self, round_id: str) -> Teacher:
        """The teacher for a round's work."""
        return self.teacher.for_round(round_id) if isinstance(self.teacher, PaidTeacher) else self.teacher

    def right(self, solution: str, answer: str) -> bool | None:
        """Whether an answer ends as a worked solution does; None where it cannot tell."""
        expected = self.final(solution)
        return None if expected is None else self.grade(expected, answer)

    @property
    def skill_map(self) -> SkillMap:
        """skill -> pool items, multi-label."""
        return SkillMap(((item.item_id, item.skills) for item in self.pool), self.catalog)
