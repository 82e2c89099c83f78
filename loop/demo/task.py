"""The demo's world as a task of the loop."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from agent.catalog import SkillCatalog
from agent.items import HeldOutItem, PoolItem
from graphs.labels import Labeller, MemoryLabels
from loop.config import Config, ConfigError, DemoSection
from loop.demo.checker import grade
from loop.demo.student import ARCHITECTURES, student_dir
from loop.demo.teacher import SymbolicTeacher
from loop.demo.traffic import FIRST_SHIFT_SKILLS
from loop.demo.world import COMMON, DESCRIPTIONS, SKILLS, STUBBORN, HeldOutSizes, held_out, pool
from loop.task import Task

BUILTIN = "builtin:"


def base_dir(base: str) -> Path:
    """The directory of a student: one of the shipped ones, or a path. Raises `ConfigError`."""
    if base.startswith(BUILTIN):
        arch = base.removeprefix(BUILTIN)
        if arch not in ARCHITECTURES:
            raise ConfigError(f"student.base {base!r} is unknown; shipped: {', '.join(BUILTIN + name for name in ARCHITECTURES)}")
        return student_dir(arch)
    path = Path(base)
    if not (path / "config.json").is_file():
        raise ConfigError(f"student.base {base!r} is no model directory (it has no config.json); `make student` trains the shipped ones")
    return path


def pool_sizes(config: Config) -> dict[str, int]:
    """How many pool items are drawn for each skill: enough of the first shift's to select from, few of the other rare ones."""
    demo = config.demo
    sizes = dict.fromkeys(SKILLS, demo.poor_pool) | {skill: demo.common_pool for skill in COMMON if skill != STUBBORN}
    return sizes | dict.fromkeys(FIRST_SHIFT_SKILLS, demo.rich_pool)


def items_of(kind: Literal["gate", "exam"], demo: DemoSection) -> tuple[HeldOutItem, ...]:
    """The fixed held-out items of one kind. Skills that waver need more items to tell a loss from flips (decision 0025)."""
    sizes = (
        HeldOutSizes(demo.gate_steady, demo.gate_wavering, demo.stubborn_items, demo.gate_mix, demo.gate_ood)
        if kind == "gate"
        else HeldOutSizes(demo.exam_per_skill, demo.exam_per_skill, demo.stubborn_items, demo.exam_mix, demo.exam_ood)
    )
    return held_out(kind, sizes)


def demo_task(config: Config) -> Task:
    """Everything the loop needs of the demo's world. The teacher labels the pool, as it labels users' questions."""
    rates = config.teacher.model_dump(exclude={"kind", "chat"})
    teacher = SymbolicTeacher(**rates, seed=config.seed)
    catalog = SkillCatalog.of(*((name, DESCRIPTIONS[name]) for name in SKILLS))
    labeller = Labeller(teacher, catalog, MemoryLabels())
    items = [item.model_copy(update={"skills": labeller.needed(item.question).skills}) for item in pool(config.seed, pool_sizes(config))]
    labelled: tuple[PoolItem, ...] = tuple(item for item in items if item.skills)
    return Task(catalog, labelled, items_of("gate", config.demo), grade, teacher, base_dir(config.student.base))
