"""The demo's world as a task of the loop."""

from __future__ import annotations

from pathlib import Path

from agent.catalog import SkillCatalog
from agent.items import HeldOutItem, PoolItem
from graphs.labels import Labeller, MemoryLabels
from loop.config import Config, ConfigError
from loop.demo.checker import grade
from loop.demo.student import ARCHITECTURES, student_dir
from loop.demo.teacher import SymbolicTeacher
from loop.demo.traffic import FIRST_SHIFT_SKILLS, SECOND_SHIFT_SKILLS
from loop.demo.world import DESCRIPTIONS, SKILLS, held_out, pool
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
    """How many pool items are drawn for each skill: many for the first shift's, few for the second's."""
    demo = config.demo
    sizes = dict.fromkeys(SKILLS, demo.common_pool)
    return sizes | dict.fromkeys(FIRST_SHIFT_SKILLS, demo.rich_pool) | dict.fromkeys(SECOND_SHIFT_SKILLS, demo.poor_pool)


def gate_items(config: Config) -> tuple[HeldOutItem, ...]:
    """The gate's fixed held-out items."""
    return held_out("gate", config.demo.gate_per_skill, config.demo.gate_mix, config.demo.gate_ood)


def demo_task(config: Config) -> Task:
    """Everything the loop needs of the demo's world. The teacher labels the pool, as it labels users' questions."""
    rates = config.teacher.model_dump(exclude={"kind"})
    teacher = SymbolicTeacher(**rates, seed=config.seed)
    catalog = SkillCatalog.of(*((name, DESCRIPTIONS[name]) for name in SKILLS))
    labeller = Labeller(teacher, catalog, MemoryLabels())
    items = [item.model_copy(update={"skills": labeller.needed(item.question).skills}) for item in pool(config.seed, pool_sizes(config))]
    labelled: tuple[PoolItem, ...] = tuple(item for item in items if item.skills)
    return Task(catalog, labelled, gate_items(config), grade, teacher, base_dir(config.student.base))
