"""The registry port: runs, versions and aliases of one student, wherever they are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from training.evaluate import Evaluation
from training.gate import GateVerdict
from training.mix import DatasetManifest

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
class VersionInfo:
    """One version of a student. The base (kind "base") has no adapter, no parent and its own hash as
    `sha256`.

    `adapter_dir` is where the adapter lies if the artifact store is a local folder; `Registry.download` works
    for every store.
    """

    version: int
    kind: Literal["base", "adapter"]
    round_id: str
    run_id: str
    sha256: str
    base_sha256: str
    parent: int | None
    adapter_dir: Path | None


class Registry(Protocol):
    """Version 1 is always the base student itself, without weights, so the champion alias always points
    somewhere.

    Every call can be repeated without a second effect. All raise `RegistryUnavailable` (retry) and
    `RegistryError` (do not).
    """

    def register_base(self, base_dir: Path) -> VersionInfo:
        """Make the base student version 1 and champion, unless it already is. Raises `RegistryError` for
        another base."""

    def start_run(self, round_id: str, run_id: str | None = None) -> str:
        """The round's run: `run_id` resumed, else one known by its round id, else a new one."""

    def finish_run(self, run_id: str, status: Literal["FINISHED", "FAILED", "KILLED"] = "FINISHED") -> None:
        """Close a run; `start_run` opens it again."""

    def log_params(self, run_id: str, params: Mapping[str, object]) -> None:
        """Write parameters. Another value for a known name is a `RegistryError`."""

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], step: int = 0) -> None:
        """Write metrics at a step."""

    def log_evaluation(self, run_id: str, phase: Literal["before", "after"], evaluation: Evaluation) -> None:
        """Write the accuracies, and all outcomes."""

    def log_manifest(self, run_id: str, manifest: DatasetManifest) -> None:
        """Write what the round trained on; the data itself stays where it is."""

    def log_verdict(self, run_id: str, verdict: GateVerdict) -> None:
        """Write the gate's verdict with its table."""

    def log_adapter(self, run_id: str, adapter_dir: Path) -> str:
        """Store the adapter's two files with the run; returns their hash. Raises `CorruptAdapter`."""

    def create_version(self, round_id: str, run_id: str, lineage: Lineage) -> VersionInfo:
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
