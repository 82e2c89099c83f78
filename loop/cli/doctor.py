"""`skillloop doctor`: one line for each part that has to work, saying what to do where it does not."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console

from loop.backends import open_log, open_store, prepare
from loop.config import Config
from loop.doors import open_engine, open_registry, open_task, open_trainer
from loop.errors import LoopError
from loop.tasks.task import Task
from loop.workers.heldout import HeldOutSet, short_of, tell_short
from loop.workers.record import open_rounds
from streams.kafka.codecs import missing_codecs
from streams.state.store import StateStore
from streams.topics import TOPICS

EXPECTED_GAIN = 0.2
LIBRARIES = ("torch", "transformers", "peft", "trl", "langgraph", "mlflow", "sqlalchemy")


def examine(config: Config, root: Path, console: Console) -> bool:
    """Run every check; True when all passed."""
    root = root.resolve()  # MLflow takes absolute paths only
    with ExitStack() as opened:
        parts = _Parts(config, root, opened)
        checks: dict[str, Callable[[], str]] = {
            "libraries": _libraries,
            "device": _device,
            "folder": lambda: str(prepare(root)),
            "state store": lambda: _store(parts.store),
            "event log": lambda: _log(config, root),
            "task": lambda: _task(parts.task),
            "held-out set": lambda: parts.held_out.told(parts.task.catalog.names),
            "gate": lambda: _gate(config, parts.task, parts.held_out),
            "student": lambda: _student(config, parts.task),
            "trainer": lambda: f"{config.train.kind}: {type(open_trainer(config.train)).__name__}",
            "champion": lambda: _champion(config, root, parts.store),
        }
        return all([_check(name, check, console) for name, check in checks.items()])


@dataclass(frozen=True)
class _Parts:
    """What several checks look at: opened by the first that asks, closed at the end. One that cannot be
    opened fails each of them."""

    config: Config
    root: Path
    opened: ExitStack

    @cached_property
    def store(self) -> StateStore:
        store = open_store(self.config, self.root)
        self.opened.callback(store.close)
        return store

    @cached_property
    def task(self) -> Task:
        task = open_task(self.config, self.root, self.store)
        self.opened.callback(task.close)
        return task

    @cached_property
    def held_out(self) -> HeldOutSet:
        return HeldOutSet(self.config, self.store, self.task.held_out)


def _check(name: str, check: Callable[[], str], console: Console) -> bool:
    try:
        console.print(f"[green]ok[/]   {name}: {check()}", highlight=False)
    except Exception as exc:
        console.print(f"[red]FAIL[/] {name}: {exc}", highlight=False)
        return False
    return True


def _libraries() -> str:
    installed, missing = [], []
    for name in LIBRARIES:
        try:
            installed.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        raise RuntimeError(f"not installed: {', '.join(missing)}; run `make setup`")
    return ", ".join(installed)


def _device() -> str:
    import torch

    return (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"CPU, {torch.get_num_threads()} threads"
    )


def _store(store: StateStore) -> str:
    return (
        f"{store.url.render_as_string(hide_password=True)}, "
        f"{len(store.buckets())} profile rows, {len(store.pending(1000))} unsent"
    )


def _log(config: Config, root: Path) -> str:
    codecs = missing_codecs() if config.log.kind == "kafka" else []
    if codecs:
        raise LoopError(f"batches packed with {', '.join(codecs)} could not be read; run `make setup`")
    with open_log(config, root, None) as log:
        return ", ".join(f"{spec.name} {sum(log.end_offsets(spec.name).values())}" for spec in TOPICS)


def _task(task: Task) -> str:
    return (
        f"{len(task.catalog)} skills, {len(task.pool)} pool items, "
        f"{len(task.held_out)} held-out items, none in both"
    )


def _gate(config: Config, task: Task, held_out: HeldOutSet) -> str:
    """Whether a round on the best measured skill could be promoted, and which skills could not be taught."""
    from training.power import outlook

    items, latest = held_out.counts(), held_out.latest()
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


def _student(config: Config, task: Task) -> str:
    engine = open_engine(config.engine, task.base_dir)
    engine.load(1, None)
    answer = engine.generate([task.prompt(task.held_out[0].question)], 1)[0][0]
    return f"{task.base_dir} answers {task.held_out[0].question!r} with {answer[:40]!r}..."


def _champion(config: Config, root: Path, store: StateStore) -> str:
    route = open_rounds(store).route(config.student.name)
    if route is None:
        return "none yet: `skillloop up`, `skillloop demo` or `skillloop worker deploy` sets the student up"
    champion = open_registry(config, root).champion()
    if champion.version != route[0]:
        told = f"MLflow's champion is version {champion.version}, but version {route[0]} is served"
        raise RuntimeError(f"{told}; `skillloop promote {champion.version}` makes them agree")
    return f"version {champion.version}, served and in MLflow"
