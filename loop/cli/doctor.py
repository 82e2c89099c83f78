"""`skillloop doctor`: one line for each part that has to work, saying what to do where it does not.

What lies outside of this process gets `DEADLINE_S` seconds to answer; what has to load a model, `LOADING_S`.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.markup import escape

from loop.backends import NothingThere, find_log, find_store, prepare
from loop.config import Config
from loop.doors import find_registry, open_engine, open_task, open_trainer
from loop.errors import LoopError
from loop.tasks.task import Task
from loop.workers.heldout import HeldOutSet, short_of, tell_short
from loop.workers.monitor import chain_of
from loop.workers.record import open_rounds
from streams.events import StudentOutput
from streams.kafka.codecs import missing_codecs
from streams.state.redrives import unsent
from streams.state.store import StateStore
from streams.topics import TOPICS
from training.errors import NothingRegistered
from training.versions import Registry

EXPECTED_GAIN = 0.2
DEADLINE_S = 20.0
LOADING_S = 300.0
MIN_FREE_BYTES = 2**30
NOT_YET = "nothing is there yet; the first worker makes it"
LIBRARIES = ("torch", "transformers", "peft", "trl", "langgraph", "mlflow", "sqlalchemy")


class NoAnswer(LoopError):
    """A part did not answer within its deadline."""


def examine(config: Config, root: Path, console: Console) -> bool:
    """Run every check; True when all passed. Looking makes nothing: neither in the run's folder nor on the
    servers that are configured."""
    root = root.resolve()  # MLflow takes absolute paths only
    with ExitStack() as opened:
        parts = _Parts(config, root, opened)
        checks = (
            Probe("libraries", _libraries),
            Probe("device", _device, deadline_s=LOADING_S),
            Probe("folder", lambda: _folder(root)),
            Probe("disk", lambda: _disk(root), needs=("folder",)),
            Probe("state store", lambda: _store(parts), needs=("folder",)),
            Probe("event log", lambda: _log(config, root), needs=("folder",)),
            Probe("task", lambda: _task(parts.task), needs=("state store",), deadline_s=LOADING_S),
            Probe("held-out set", lambda: parts.held_out.told(parts.task.catalog.names), needs=("task",)),
            Probe("gate", lambda: _gate(config, parts.task, parts.held_out), needs=("task",)),
            Probe("filters", lambda: _filters(config, parts.task), needs=("task",), deadline_s=LOADING_S),
            Probe("teacher", lambda: _teacher(config, parts.task), needs=("task",)),
            Probe("prices", lambda: _prices(config)),
            Probe("registry", lambda: _registry(parts), needs=("folder",)),
            Probe("student", lambda: _student(config, parts.task), needs=("task",), deadline_s=LOADING_S),
            Probe("trainer", lambda: _trainer(config, parts.task), needs=("task",), deadline_s=LOADING_S),
            Probe("champion", lambda: _champion(config, parts), needs=("state store", "registry")),
        )
        return _run(checks, console)


@dataclass(frozen=True)
class Probe:
    """`run` says what is there, or raises what is wrong, within `deadline_s`; it is left out where one that
    it `needs` has failed."""

    name: str
    run: Callable[[], str]
    needs: Sequence[str] = ()
    deadline_s: float = DEADLINE_S


def _run(checks: Sequence[Probe], console: Console) -> bool:
    failed: set[str] = set()
    for check in checks:
        missing = failed.intersection(check.needs)
        try:
            if missing:
                raise LoopError(f"not checked, since it needs the {' and the '.join(sorted(missing))}")
            told, style = _within(check.run, check.deadline_s), "[green]ok[/]  "
        except Exception as exc:
            told, style = str(exc) or type(exc).__name__, "[red]FAIL[/]"
            failed.add(check.name)
        console.print(f"{style} {check.name}: {escape(told)}", highlight=False, markup=True)
    return not failed


@dataclass
class _Outcome:
    told: str = ""
    errors: list[BaseException] = field(default_factory=list)


def _within(run: Callable[[], str], deadline_s: float) -> str:
    """What `run` returns or raises; `NoAnswer` after the deadline, when its thread is left to itself."""
    outcome = _Outcome()

    def act() -> None:
        try:
            outcome.told = run()
        except BaseException as exc:
            outcome.errors.append(exc)

    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    thread.join(deadline_s)
    if thread.is_alive():
        raise NoAnswer(f"no answer within {deadline_s:.0f} s; check its address")
    if outcome.errors:
        raise outcome.errors[0]
    return outcome.told


@dataclass(frozen=True)
class _Parts:
    """What several checks look at: opened by the first that asks, closed at the end."""

    config: Config
    root: Path
    opened: ExitStack

    @cached_property
    def found_store(self) -> StateStore | None:
        """None where no worker has made it yet."""
        try:
            store = find_store(self.config, self.root)
        except NothingThere:
            return None
        self.opened.callback(store.close)
        return store

    @cached_property
    def aside(self) -> Path:
        """A folder for what a check has to write."""
        return Path(self.opened.enter_context(TemporaryDirectory(prefix="skillloop-doctor-")))

    @cached_property
    def store(self) -> StateStore:
        """The run's, or an empty one."""
        if self.found_store is not None:
            return self.found_store
        store = StateStore(f"sqlite:///{self.aside / 'state.db'}")
        self.opened.callback(store.close)
        return store

    @cached_property
    def task(self) -> Task:
        task = open_task(self.config, self.aside, self.store)
        self.opened.callback(task.close)
        return task

    @cached_property
    def registry(self) -> Registry:
        return find_registry(self.config, self.root)

    @cached_property
    def held_out(self) -> HeldOutSet:
        return HeldOutSet(self.config, self.store, self.task.held_out)


def _folder(root: Path) -> str:
    """Whether the run's folder, or the nearest one that is there, can be written."""
    there = next(folder for folder in (root, *root.parents) if _exists(folder))
    prepare(there)
    return str(root) if there == root else f"{root} is not there yet; it can be made"


def _exists(folder: Path) -> bool:
    try:
        return folder.exists()
    except PermissionError:  # it cannot even be looked into: `prepare` says so of the folder above
        return False


def _libraries() -> str:
    installed, missing = [], []
    for name in LIBRARIES:
        try:
            installed.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        raise LoopError(f"not installed: {', '.join(missing)}; run `pip install {' '.join(missing)}`")
    return ", ".join(installed)


def _device() -> str:
    import torch

    return (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"CPU, {torch.get_num_threads()} threads"
    )


def _disk(root: Path) -> str:
    free = shutil.disk_usage(next(folder for folder in (root, *root.parents) if folder.exists())).free
    told = f"{free / 2**30:.1f} GiB are free for {root}"
    if free < MIN_FREE_BYTES:
        raise LoopError(
            f"only {told}; state, adapters and the log need at least {MIN_FREE_BYTES / 2**30:.0f}"
        )
    return told


def _store(parts: _Parts) -> str:
    store = parts.found_store
    if store is None:
        return NOT_YET
    return (
        f"{store.url.render_as_string(hide_password=True)}, "
        f"{len(store.buckets())} profile rows, {unsent(store)} unsent"
    )


def _log(config: Config, root: Path) -> str:
    codecs = missing_codecs() if config.log.kind == "kafka" else []
    if codecs:
        raise LoopError(
            f"batches packed with {', '.join(codecs)} could not be read; "
            "run `pip install lz4 python-snappy zstandard`"
        )
    try:
        with find_log(config, root) as log:
            return ", ".join(f"{spec.name} {sum(log.end_offsets(spec.name).values())}" for spec in TOPICS)
    except NothingThere:
        return NOT_YET


def _task(task: Task) -> str:
    return (
        f"{len(task.catalog)} skills, {len(task.pool)} pool items, "
        f"{len(task.held_out)} held-out items, none in both"
    )


def _gate(config: Config, task: Task, held_out: HeldOutSet) -> str:
    """Whether a round on the best measured skill could be promoted, and which skills could not be taught."""
    from training.power import outlook

    items, latest = held_out.recent(), held_out.latest()
    best = max(task.catalog.names, key=lambda skill: items.get(skill, 0))
    chances = outlook([best], items, latest.items, EXPECTED_GAIN, config.gate)
    if chances.reasons:
        raise LoopError(f"the gate can hardly open: {'; '.join(chances.reasons)}")
    few = short_of(task.catalog.names, items, config.gate.min_items)
    told = f"; too few held-out items to teach {tell_short(few, config.gate.min_items)}" if few else ""
    return (
        f"a gain of {EXPECTED_GAIN:.0%} on {best!r} is promoted in {chances.power:.0%} of rounds"
        f" ({chances.gain_items} items of the targets are enough){told}"
    )


def _filters(config: Config, task: Task) -> str:
    if config.monitor.source == "diagnoses":
        return "none: another program diagnoses"

    def unasked(output: StudentOutput, count: int) -> Sequence[str]:
        raise LoopError("the doctor samples nothing")

    return ", then ".join(part.name for part in chain_of(config.monitor, task, unasked))


def _teacher(config: Config, task: Task) -> str:
    """Whether the teacher's server answers and has the model; one in this process has nothing to reach."""
    check = getattr(task.teacher, "check", None)
    return check() if callable(check) else f"{config.teacher.kind}: {task.teacher.name}, in this process"


def _prices(config: Config) -> str:
    chat = config.teacher.chat if config.teacher.kind == "chat" else None
    if chat is None:
        return "nothing is paid by the call"
    if chat.price is None:
        raise LoopError(
            f"teacher.chat.price: no price of {chat.model!r}, so every call would be refused; give"
            " prompt_usd_per_mtok and completion_usd_per_mtok, or free = true"
        )
    if chat.price.free:
        return f"{chat.model!r} is free"
    caps = [(name, cap) for name, cap in config.budget.model_dump().items() if cap is not None]
    shown = ", ".join(f"{name} {cap:g}" for name, cap in caps) or "none, so nothing limits what is spent"
    return f"{chat.model!r} is priced; caps of [budget]: {shown}"


def _registry(parts: _Parts) -> str:
    try:
        return f"{len(parts.registry.versions())} versions"
    except NothingRegistered as exc:
        return f"{NOT_YET} ({exc})"


def _student(config: Config, task: Task) -> str:
    engine = open_engine(config.engine, task.base_dir)
    engine.load(1, None)
    question = task.held_out[0].question
    answer = engine.generate([task.prompt(question)], 1)[0][0]
    if not answer.strip():
        raise LoopError(f"{task.base_dir} answers {question!r} with nothing")
    return f"{task.base_dir} answers {question!r} with {answer[:40]!r}..."


def _trainer(config: Config, task: Task) -> str:
    """Whether the trainer's settings fit the student, where the trainer can say."""
    trainer = open_trainer(config.train)
    check = getattr(trainer, "check", None)
    size = (config.train.max_length, config.train.batch_size)
    told = check(task.base_dir, *size) if callable(check) else "settings not checked"
    return f"{config.train.kind}, {told}"


def _champion(config: Config, parts: _Parts) -> str:
    route = open_rounds(parts.store).route(config.student.name)
    if route is None:
        return "none yet: `skillloop up`, `skillloop demo` or `skillloop worker deploy` sets the student up"
    champion = parts.registry.champion()
    if champion.version != route[0]:
        told = f"MLflow's champion is version {champion.version}, but version {route[0]} is served"
        raise LoopError(f"{told}; `skillloop promote {champion.version}` makes them agree")
    return f"version {champion.version}, served and in MLflow"
