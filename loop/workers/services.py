"""What the workers share: one frozen bundle, made by `loop.wiring`, in which every part can be replaced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from loop.config import Config
from loop.tasks.task import Task
from serving.engine import Engine
from streams.clock import Clock
from streams.crash import CrashPoint
from streams.state.rounds import RoundStore
from streams.state.store import StateStore
from training.registry import Registry

Listener = Callable[[str, dict[str, Any]], None]


def nobody(event: str, detail: dict[str, Any]) -> None:
    """The default listener: progress is shown to nobody."""


@dataclass(frozen=True)
class Services:
    """`root` is the run's directory; `listen` is told what happens, for display only. A context manager that
    closes what it holds."""

    config: Config
    root: Path
    store: StateStore
    rounds: RoundStore
    task: Task
    engine: Engine
    registry: Registry
    clock: Clock
    crash: CrashPoint
    owner: str
    listen: Listener = nobody

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.task.close()
        self.store.close()

    @property
    def student(self) -> str:
        """The student's name."""
        return self.config.student.name

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

    def load(self, version: int) -> None:
        """Make a version servable, unless it already is."""
        if version not in self.engine.versions():
            self.engine.load(version, self.adapter_of(version))
