"""The registry port: runs, versions and aliases of one student, wherever they are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from training.evaluate import Evaluation
from training.trainer import CurvePoint
from training.verdict import GateVerdict

Alias = Literal["champion", "challenger", "previous"]


@dataclass(frozen=True)
class Lineage:
    """Where a version came from and why it may be served; stored as tags."""

    parent: int
    base_sha256: str
    adapter_sha256: str
    data_sha256: str
    gate: str


@dataclass(frozen=True)
class TrainedData:
    """A round's data as trained: a stored file (`Registry.put_file`) of so many prompts and completions.
    `name` is what the tracking server calls it."""

    name: str
    artifact: str
    sha256: str
    examples: int


@dataclass(frozen=True)
class VersionInfo:
    """One version of a student. The base (kind "base") has no adapter, no parent and its own hash as
    `sha256`.

    `artifact` is where the adapter lies in its run, and `adapter_dir` its folder if the artifact store is a
    local one; `Registry.download` works for every store.
    """

    version: int
    kind: Literal["base", "adapter"]
    round_id: str
    run_id: str
    sha256: str
    base_sha256: str
    parent: int | None
    artifact: str
    adapter_dir: Path | None


class Registry(Protocol):
    """Version 1 is always the base student itself, without weights, so the champion alias always points
    somewhere.

    Every call can be repeated without a second effect. All raise `RegistryUnavailable` (retry) and
    `RegistryError` (do not). Files are stored under their hash, so nothing stored is replaced.
    """

    def register_base(self, base_dir: Path) -> VersionInfo:
        """Make the base student version 1 and champion, unless it already is. Raises `RegistryError` for
        another base."""

    def start_run(self, round_id: str, run_id: str | None = None) -> str:
        """The round's run: `run_id` resumed, else one known by its round id, else a new one."""

    def finish_run(self, run_id: str, status: Literal["FINISHED", "FAILED", "KILLED"] = "FINISHED") -> None:
        """Close a run; `start_run` opens it again."""

    def drop_other_runs(self, round_id: str, run_id: str) -> None:
        """Forget the runs of a round but the one that it is tied to."""

    def log_params(self, run_id: str, params: Mapping[str, object]) -> None:
        """Write parameters. Another value for a known name is a `RegistryError`."""

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], step: int = 0) -> None:
        """Write metrics at a step."""

    def log_curve(self, run_id: str, curve: Sequence[CurvePoint]) -> None:
        """Write what the trainer reported, by step."""

    def log_evaluation(self, run_id: str, phase: Literal["before", "after"], evaluation: Evaluation) -> None:
        """Write the accuracies."""

    def log_verdict(self, run_id: str, verdict: GateVerdict) -> None:
        """Write the gate's verdict with its table."""

    def log_text(self, run_id: str, text: str, artifact: str) -> None:
        """Write a page for people, in place of an earlier one."""

    def log_data(self, run_id: str, data: TrainedData) -> None:
        """Name stored data as the run's input."""

    def describe_run(self, run_id: str, note: str, tags: Mapping[str, str]) -> None:
        """Write a run's description (Markdown) and its tags."""

    def put_file(self, run_id: str, path: Path, artifact: str) -> str:
        """Store a file with the run; returns its hash."""

    def get_file(self, run_id: str, path: Path, artifact: str, sha256: str) -> Path:
        """`path`, fetched unless the file there has this hash already. Raises `ArtifactError` when the run
        has no such file or the store holds other bytes; nothing is left behind then."""

    def log_adapter(self, run_id: str, adapter_dir: Path) -> str:
        """Store the adapter's two files with the run; returns their hash. Raises `CorruptAdapter`."""

    def get_adapter(self, run_id: str, directory: Path, sha256: str) -> Path:
        """`directory` with the run's adapter of this hash, fetched unless it is there. Raises `ArtifactError`
        and `CorruptAdapter`; nothing is left behind then."""

    def create_version(
        self, round_id: str, run_id: str, lineage: Lineage, description: str = ""
    ) -> VersionInfo:
        """The version of a round, created once, and `challenger` pointing to it."""

    def promote(self, version: int) -> VersionInfo:
        """Make a version champion and its predecessor `previous`."""

    def rollback(self, version: int, to: int | None = None) -> VersionInfo:
        """Take `version` back: `to` (None: `previous`) becomes champion again; nothing happens when `version`
        is not the champion. Raises `RegistryError` when there is nothing to go back to."""

    def champion(self) -> VersionInfo:
        """The version that should be served. Raises `RegistryError` before `register_base`."""

    def version(self, version: int) -> VersionInfo:
        """One version. Raises `RegistryError` when there is none of that number."""

    def versions(self) -> tuple[VersionInfo, ...]:
        """All versions, ascending."""

    def alias(self, alias: Alias) -> int | None:
        """The version an alias points to, or None."""

    def download(self, version: int, directory: Path) -> Path | None:
        """A verified copy of a version's adapter in `directory` (None for the base). Raises `CorruptAdapter`
        when the stored bytes are not those registered; nothing is left behind then."""
