"""What the workers share: one frozen bundle, made by `loop.wiring`, in which every part can be replaced by a
`Ports`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Self

from agent.items import Example
from graphs.teacher import Teacher
from loop.backends import close
from loop.config import Config
from loop.tasks.task import Task
from loop.workers.heldout import HeldOutSet
from loop.workers.messages import Listener, nobody
from loop.workers.record import LoopRound, LoopRounds
from serving.adapter_files import ADAPTER_FILES, adapter_sha256
from serving.engine import Engine
from streams.clock import Clock, SystemClock
from streams.crash import CrashPoint
from streams.state.store import StateStore
from training.mix import read_dataset
from training.trainer import Trainer
from training.versions import Registry

DATASET = "data/dataset.jsonl"
"""A round's curated examples, in its run; in its folder without `data/`."""


@dataclass(frozen=True)
class Ports:
    """What replaces parts of the services: for tests, and for a process with a clock or a name of its own."""

    store: StateStore | None = None
    task: Task | None = None
    teacher: Teacher | None = None
    engine: Engine | None = None
    trainer: Trainer | None = None
    reinforcer: Trainer | None = None
    registry: Registry | None = None
    clock: Clock = field(default_factory=SystemClock)
    crash: CrashPoint | None = None
    owner: str = ""
    listen: Listener = nobody
    stop: Event = field(default_factory=Event)


@dataclass(frozen=True)
class Services:
    """`root` is the run's directory: what rounds keep there are copies of what the registry stores, fetched
    when they are missing. `listen` is told what happens, for display only; `stop` is set when the process has
    to end; `reinforcer` trains the rounds that the policy wants reinforced. A context manager that closes
    what it holds."""

    config: Config
    root: Path
    store: StateStore
    rounds: LoopRounds
    task: Task
    engine: Engine
    trainer: Trainer
    registry: Registry
    clock: Clock
    crash: CrashPoint
    owner: str
    listen: Listener = nobody
    stop: Event = field(default_factory=Event)
    reinforcer: Trainer | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for part in (self.engine, self.trainer, self.registry, self.task, self.store):
            close(part)

    @property
    def student(self) -> str:
        """The student's name."""
        return self.config.student.name

    @property
    def routes(self) -> Path:
        """The folder of the route table, which gateways read."""
        return self.root

    @property
    def held_out(self) -> HeldOutSet:
        """The gate's questions, in versions."""
        return HeldOutSet(self.config, self.store, self.task.held_out)

    def round_dir(self, round_id: str) -> Path:
        """Where a round keeps its files."""
        return self.root / "rounds" / round_id

    def evaluation_file(self, version: int) -> Path:
        """The gate's evaluation of a version."""
        return self.root / "evaluations" / f"v{version}.json"

    def adapter_of(self, version: int) -> Path | None:
        """A version's adapter, fetched from the registry and checked against its hash; None for the base.

        Every version has a directory of its own, never reused: vLLM keeps cache blocks of the old weights
        (docs/dependencies.md).
        """
        return self.registry.download(version, self.root / "adapters" / f"{self.student}-v{version}")

    def examples_of(self, round_: LoopRound) -> list[Example]:
        """A round's curated examples. Raises `ArtifactError` when they are neither here nor in its run."""
        sha256 = round_.record.need_curated().manifest.sha256
        path = self.round_dir(round_.round_id) / Path(DATASET).name
        return read_dataset(self.registry.get_file(round_.run_id or "", path, DATASET, sha256), sha256)

    def trained_adapter(self, round_: LoopRound) -> Path:
        """A round's adapter: where it was trained, else fetched from its run."""
        trained, folder = round_.record.need_trained(), self.round_dir(round_.round_id)
        made = folder / trained.directory / "adapter"
        if all((made / name).is_file() for name in ADAPTER_FILES):
            if adapter_sha256(made) == trained.adapter_sha256:
                return made
        return self.registry.get_adapter(round_.run_id or "", folder / "adapter", trained.adapter_sha256)

    def load(self, version: int) -> None:
        """Make a version servable, unless it already is."""
        if version not in self.engine.versions():
            self.engine.load(version, self.adapter_of(version))


def today(services: Services) -> str:
    """The day (UTC, by the loop's clock) on which money is booked: the meters', the rounds' and the
    policy's."""
    return services.clock.now().date().isoformat()
