"""The demo's world as a task of the loop."""

from __future__ import annotations

from typing import Literal

from agent.catalog import SkillCatalog
from agent.items import HeldOutItem, PoolItem
from graphs.labels import Labeller, MemoryLabels
from graphs.teacher import PaidTeacher, Teacher
from loop.config import Config, ConfigError, DemoSection
from loop.tasks.student import Student
from loop.tasks.task import Task
from loop.tasks.world.checker import final_answer, grade
from loop.tasks.world.traffic import FIRST_SHIFT_SKILLS, drawn_drift
from loop.tasks.world.world import (
    COMMON,
    DESCRIPTIONS,
    SKILLS,
    STUBBORN,
    HeldOutSizes,
    chains,
    held_out,
    pool,
)


def pool_sizes(config: Config) -> dict[str, int]:
    """How many pool items are drawn for each skill: of the first shift's enough to select from and few of the
    other rare ones, or what `drawn_drift` says."""
    demo = config.demo
    sizes = dict.fromkeys(SKILLS, demo.poor_pool) | {
        skill: demo.common_pool for skill in COMMON if skill != STUBBORN
    }
    if demo.drift == "drawn":
        return sizes | dict(drawn_drift(config.seed).pool)
    return sizes | dict.fromkeys(FIRST_SHIFT_SKILLS, demo.rich_pool)


def items_of(kind: Literal["gate", "exam"], demo: DemoSection) -> tuple[HeldOutItem, ...]:
    """The fixed held-out items of one kind. Skills that waver need more items to tell a loss
    from flips (decision 0027)."""
    sizes = (
        HeldOutSizes(demo.gate_steady, demo.gate_wavering, demo.stubborn_items, demo.gate_mix, demo.gate_ood)
        if kind == "gate"
        else HeldOutSizes(
            demo.exam_per_skill, demo.exam_per_skill, demo.stubborn_items, demo.exam_mix, demo.exam_ood
        )
    )
    return held_out(kind, sizes)


def _pool(config: Config) -> list[PoolItem]:
    """The pool's items, each question once."""
    items = [
        *pool(config.seed, pool_sizes(config)),
        *chains(config.seed, config.demo.chain_pool),
    ]
    return list({item.item_id: item for item in items}.values())


def demo_task(config: Config, student: Student, teacher: Teacher) -> Task:
    """Everything the loop needs of the demo's world. The teacher labels the pool, as it labels users'
    questions.

    Raises `ConfigError` for a teacher that is paid by the call: every process labels the pool again.
    """
    if isinstance(teacher, PaidTeacher):
        raise ConfigError(
            f"teacher.kind {config.teacher.kind!r} needs task.kind 'files': the demo's world has its symbolic"
            " teacher"
        )
    catalog = SkillCatalog.of(*((name, DESCRIPTIONS[name]) for name in SKILLS))
    labeller = Labeller(teacher, catalog, MemoryLabels())
    items = [
        item.model_copy(update={"skills": labeller.needed(item.question).skills}) for item in _pool(config)
    ]
    labelled: tuple[PoolItem, ...] = tuple(item for item in items if item.skills)
    held_out = items_of("gate", config.demo)
    return Task(catalog, labelled, held_out, grade, teacher, student.base, grader="world", final=final_answer)
