"""The doors: one function and one table of kinds for each choice. Event log and state store, which need no
model library, have theirs in loop/backends.py; strategies in agent/strategies.py, difficulty filters in
graphs/filters/chain.py.

A new kind is one new file and one row here, or a row that a plugin adds (docs/extending.md). A row imports
what it needs when it is opened. What has a `close` method is closed by whoever opened it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from agent.table import Table
from graphs.chat.meter import Books
from graphs.teacher import Teacher
from loop.backends import close
from loop.config import (
    Base,
    Config,
    ConfigError,
    EngineSection,
    RegistrySection,
    TeacherSection,
    TrainSection,
)
from loop.loading import open_kind
from serving.engine import Engine
from streams.state.ledger import book, entries, spent_on
from streams.state.store import StateStore
from training.trainer import Trainer
from training.versions import Registry

if TYPE_CHECKING:
    from loop.tasks.student import Student
    from loop.tasks.task import Task


def _transformers(section: EngineSection, base_dir: Path) -> Engine:
    from serving.transformers_engine import TransformersEngine

    return TransformersEngine(base_dir, section.transformers)


def _scripted_engine(section: EngineSection, base_dir: Path) -> Engine:
    from serving.scripted_engine import ScriptedEngine

    answers, otherwise = section.options.get("answers", {}), str(section.options.get("otherwise", ""))
    return ScriptedEngine(lambda prompt, version, sample: str(answers.get(prompt, otherwise)))


def _vllm(section: EngineSection, base_dir: Path) -> Engine:
    from serving.vllm_engine import VllmEngine

    return VllmEngine(section.vllm, base_dir)


ENGINES: Table[Callable[[EngineSection, Path], Engine]] = Table(
    "engine", {"transformers": _transformers, "vllm": _vllm, "scripted": _scripted_engine}
)


def open_engine(section: EngineSection, base_dir: Path) -> Engine:
    """What serves the student in `base_dir`."""
    return open_kind(ENGINES, section, section, base_dir)


def open_student(base: Base, engine: EngineSection) -> Student:
    """The student; its engine is opened when it is first used. Raises `ConfigError`."""
    from loop.tasks.student import Student, base_dir

    return Student(base_dir(base), partial(open_engine, engine))


def _symbolic(section: TeacherSection, books: Books, seed: int) -> Teacher:
    from loop.tasks.world.teacher import SymbolicTeacher

    return SymbolicTeacher(**section.symbolic.model_dump(), seed=seed)


def _chat(section: TeacherSection, books: Books, seed: int) -> Teacher:
    from graphs.chat.teacher import ChatTeacher

    if section.chat is None:
        raise ConfigError("teacher.kind 'chat' needs its server in [teacher.chat] (docs/teacher.md)")
    return ChatTeacher.kept(section.chat, books)


def _scripted(section: TeacherSection, books: Books, seed: int) -> Teacher:
    from loop.tasks.scripted import scripted_teacher

    return scripted_teacher(section.scripted.script)


TEACHERS: Table[Callable[[TeacherSection, Books, int], Teacher]] = Table(
    "teacher", {"symbolic": _symbolic, "chat": _chat, "scripted": _scripted}
)


def open_teacher(section: TeacherSection, books: Books, seed: int) -> Teacher:
    """Who teaches; one that is paid by the call keeps its replies and costs in `books`."""
    return open_kind(TEACHERS, section, section, books, seed)


def student_books(config: Config, root: Path, store: StateStore) -> Books:
    """The loop's books: replies in the run's directory, costs in the store, where other workers' meters see
    them."""
    student = config.student.name
    return Books(
        student=student,
        replies=root / "replies.sqlite",
        caps=config.budget,
        sink=partial(book, store),
        before=entries(store, student),
        shared=partial(spent_on, store, student),
    )


def _sft(section: TrainSection) -> Trainer:
    from training.sft import SftTrainer

    return SftTrainer(section.sft)


def _grpo(section: TrainSection) -> Trainer:
    from training.grpo import GrpoTrainer

    return GrpoTrainer(section.grpo, section.sft)


def _launch(section: TrainSection) -> Trainer:
    from training.launch import LaunchTrainer

    return LaunchTrainer(section.sft, section.launch)


TRAINERS: Table[Callable[[TrainSection], Trainer]] = Table(
    "trainer", {"sft": _sft, "grpo": _grpo, "launch": _launch}
)


def open_trainer(section: TrainSection) -> Trainer:
    """What turns a round's examples into an adapter."""
    return open_kind(TRAINERS, section, section)


def open_reinforcer(section: TrainSection) -> Trainer:
    """What trains the rounds that the policy wants reinforced."""
    return _grpo(section)


def _mlflow(section: RegistrySection, student: str, root: Path) -> Registry:
    return _mlflow_registry(section, student, root, create=True)


def _mlflow_registry(section: RegistrySection, student: str, root: Path, create: bool) -> Registry:
    from training.registry import MlflowRegistry

    uri, artifacts = section.mlflow.tracking_uri, None
    if not uri:
        uri, artifacts = f"sqlite:///{root / 'mlflow.db'}", root / "mlartifacts"
    return MlflowRegistry(uri, student, artifacts, create)


REGISTRIES: Table[Callable[[RegistrySection, str, Path], Registry]] = Table("registry", {"mlflow": _mlflow})


def open_registry(config: Config, root: Path) -> Registry:
    """Where the student's runs and versions are kept."""
    return open_kind(REGISTRIES, config.registry, config.registry, config.student.name, root)


def find_registry(config: Config, root: Path) -> Registry:
    """The registry for a command that only looks: makes nothing. Raises `NothingRegistered`."""
    if config.registry.kind != "mlflow":
        return open_registry(config, root)
    return _mlflow_registry(config.registry, config.student.name, root, create=False)


def _demo(config: Config, student: Student, teacher: Teacher) -> Task:
    from loop.tasks.world.task import demo_task

    return demo_task(config, student, teacher)


def _files(config: Config, student: Student, teacher: Teacher) -> Task:
    from loop.tasks.files import files_task

    return files_task(config, student, teacher)


TASKS: Table[Callable[[Config, Student, Teacher], Task]] = Table("task", {"demo": _demo, "files": _files})


def open_task(config: Config, root: Path, store: StateStore, teacher: Teacher | None = None) -> Task:
    """What the student is for, with its teacher (another one may be given). Raises `ConfigError` for a
    teacher that cannot teach the task, `DataError` for its files."""
    with ExitStack() as undo:
        chosen = teacher or open_teacher(config.teacher, student_books(config, root, store), config.seed)
        undo.callback(close, chosen)
        task = open_kind(TASKS, config.task, config, open_student(config.student.base, config.engine), chosen)
        undo.callback(task.close)
        return replace(task, close=undo.pop_all().close)
