"""What the stages of a run work with: configuration, directory, data, teacher, student, and who watches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from agent.catalog import SkillCatalog
from agent.items import PoolItem
from graphs.chat.cache import SqliteReplies
from graphs.curate.neighbours import Embed
from graphs.filters.chain import StepRewards
from graphs.teacher import CatalogTeacher
from loop.offline.config import StatConfig
from loop.offline.data import Data, load_data
from loop.offline.folder import RunFolder
from loop.offline.journal import Runner
from loop.tasks.grading import Grade
from loop.tasks.questions import pool_items, subject_key
from loop.tasks.records import CatalogRow, LabelRow
from loop.tasks.student import Student
from streams.crash import CrashPoint, no_crash
from streams.files import file_sha256
from streams.state.store import StateStore
from training.trainer import Trainer

STUDENT = "offline"
"""The student's name in a run's ledger, outputs and profile."""


@dataclass(frozen=True)
class Bench:
    """Everything a stage may use. `open_student`, `open_trainer` and `embed` are called only by the stages
    that need them; `student_id` is a hash of the student's files, `rewards_id` one of the reward model's;
    `ledger` is what was paid, `replies` what the teacher said."""

    config: StatConfig
    folder: RunFolder
    ledger: StateStore
    replies: SqliteReplies
    teacher: CatalogTeacher
    grade: Grade
    runner: Runner
    open_student: Callable[[], Student]
    open_trainer: Callable[[], Trainer]
    student_id: str
    embed: Embed
    step_rewards: StepRewards | None = None
    rewards_id: str = ""
    crash: CrashPoint = no_crash
    suffix: str = ""

    def named(self, stage: str) -> str:
        """The name of a stage that depends on the strategy: with the strategy's name, when it is not the
        configured one."""
        return stage + self.suffix

    @cached_property
    def data(self) -> Data:
        """The questions, read once."""
        return load_data(self.config.data, self.config.seed)

    @property
    def teacher_id(self) -> str:
        """Who teaches, as far as results depend on it."""
        return f"{self.teacher.name}/{self.teacher.prompt_version}"

    @cached_property
    def data_sha256(self) -> dict[str, str]:
        """The hashes of the data files by name of their use."""
        section = self.config.data
        files = {
            "train": section.train,
            "validation": section.validation,
            **{f"held-out:{path.name}": path for path in section.held_out},
        }
        return {name: file_sha256(path) for name, path in files.items() if path is not None}

    def catalog_rows(self) -> list[CatalogRow]:
        """The catalog of the run."""
        return self.folder.rows("catalog", CatalogRow)

    def labels(self) -> dict[str, tuple[str, ...]]:
        """The skills of pool and validation questions by id; a question nobody could label has none."""
        return {row.question_id: row.skills for row in self.folder.rows("labels", LabelRow)}

    def items(self) -> Mapping[str, PoolItem]:
        """The pool by id, labelled."""
        return pool_items(self.data.pool, self.labels())


@dataclass(frozen=True)
class OfferedSkills:
    """Which skills the teacher may choose from: those of the question's subject (paper section 3.1), all
    where it has none."""

    rows: Sequence[CatalogRow]

    @cached_property
    def catalog(self) -> SkillCatalog:
        """All skills."""
        return SkillCatalog.of(*((row.skill, row.description) for row in self.rows))

    @cached_property
    def _by_subject(self) -> dict[str, tuple[str, ...]]:
        subjects = {subject_key(subject) for row in self.rows for subject in row.subjects}
        return {
            subject: tuple(
                row.skill
                for row in self.rows
                if not row.subjects or subject in map(subject_key, row.subjects)
            )
            for subject in subjects
        }

    def of(self, subject: str) -> tuple[str, ...]:
        """The names offered for a question of `subject`."""
        return self._by_subject.get(subject_key(subject), self.catalog.names)
