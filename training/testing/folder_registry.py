"""A registry for tests: files in a folder, everything else in memory. Its calls can be repeated as those of
the real one can; versions, aliases and files behave as `training.versions.Registry` says."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from serving.adapter_files import ADAPTER_FILES, CorruptAdapter, adapter_sha256
from streams.files import file_sha256
from training.artifacts import ADAPTER, stored_name
from training.errors import ArtifactError, RegistryError
from training.evaluate import Evaluation
from training.gate import GateVerdict
from training.trainer import CurvePoint
from training.versions import Alias, Lineage, TrainedData, VersionInfo


@dataclass
class FakeRun:
    """What a run was told."""

    round_id: str
    status: str = "RUNNING"
    note: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[tuple[str, int], float] = field(default_factory=dict)
    verdict: GateVerdict | None = None
    data: TrainedData | None = None


class FolderRegistry:
    """One student's runs and versions. Runs are named after their rounds; two of these on one folder are two
    hosts that share a store only when they are the same object."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.runs = folder, dict[str, FakeRun]()
        self._versions: list[VersionInfo] = []
        self._aliases: dict[Alias, int] = {}

    def register_base(self, base_dir: Path) -> VersionInfo:
        if not self._versions:
            run_id = self.start_run("base")
            self._versions.append(VersionInfo(1, "base", "base", run_id, "base", "base", None, "base", None))
            self._aliases["champion"] = 1
        return self._versions[0]

    def start_run(self, round_id: str, run_id: str | None = None) -> str:
        self.runs.setdefault(f"run-{round_id}", FakeRun(round_id)).status = "RUNNING"
        return f"run-{round_id}"

    def finish_run(self, run_id: str, status: Literal["FINISHED", "FAILED", "KILLED"] = "FINISHED") -> None:
        self.runs[run_id].status = status

    def drop_other_runs(self, round_id: str, run_id: str) -> None:
        others = [name for name, run in self.runs.items() if run.round_id == round_id and name != run_id]
        for name in others:
            del self.runs[name]

    def log_params(self, run_id: str, params: Mapping[str, object]) -> None:
        known = self.runs[run_id].params
        for name, value in params.items():
            if known.setdefault(name, str(value)) != str(value):
                raise RegistryError(f"parameter {name} of {run_id} is {known[name]!r} already")

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], step: int = 0) -> None:
        self.runs[run_id].metrics |= {(name, step): value for name, value in metrics.items()}

    def log_curve(self, run_id: str, curve: Sequence[CurvePoint]) -> None:
        for point in curve:
            self.log_metrics(run_id, {"train/loss": point.loss}, point.step)

    def log_evaluation(self, run_id: str, phase: Literal["before", "after"], evaluation: Evaluation) -> None:
        self.log_metrics(run_id, {f"{phase}/accuracy": evaluation.accuracy()})

    def log_verdict(self, run_id: str, verdict: GateVerdict) -> None:
        self.runs[run_id].verdict = verdict

    def log_text(self, run_id: str, text: str, artifact: str) -> None:
        path = self.folder / run_id / artifact
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def log_data(self, run_id: str, data: TrainedData) -> None:
        self.runs[run_id].data = data

    def describe_run(self, run_id: str, note: str, tags: Mapping[str, str]) -> None:
        self.runs[run_id].note = note
        self.runs[run_id].tags |= tags

    def put_file(self, run_id: str, path: Path, artifact: str) -> str:
        sha256 = file_sha256(path)
        self._copy(path, self.folder / run_id / stored_name(artifact, sha256))
        return sha256

    def get_file(self, run_id: str, path: Path, artifact: str, sha256: str) -> Path:
        if path.is_file() and file_sha256(path) == sha256:
            return path
        stored = self.folder / run_id / stored_name(artifact, sha256)
        if not stored.is_file():
            raise ArtifactError(f"{run_id} has no {artifact}, stored as {stored.name}")
        if (other := file_sha256(stored)) != sha256:
            raise ArtifactError(f"{run_id} holds {stored.name} with sha256 {other}, not {sha256}")
        return self._copy(stored, path)

    def log_adapter(self, run_id: str, adapter_dir: Path) -> str:
        sha256 = adapter_sha256(adapter_dir)
        for name in ADAPTER_FILES:
            self._copy(adapter_dir / name, self.folder / run_id / stored_name(ADAPTER, sha256) / name)
        return sha256

    def get_adapter(self, run_id: str, directory: Path, sha256: str) -> Path:
        stored = self.folder / run_id / stored_name(ADAPTER, sha256)
        if not stored.is_dir():
            raise ArtifactError(f"{run_id} has no {stored.name}")
        for name in ADAPTER_FILES:
            self._copy(stored / name, directory / name)
        if adapter_sha256(directory) != sha256:
            shutil.rmtree(directory)
            raise CorruptAdapter(f"{stored} is not the adapter that was stored")
        return directory

    def create_version(
        self, round_id: str, run_id: str, lineage: Lineage, description: str = ""
    ) -> VersionInfo:
        known = {info.round_id: info for info in self._versions}
        if round_id not in known:
            made = stored_name(ADAPTER, lineage.adapter_sha256)
            shas = (lineage.adapter_sha256, lineage.base_sha256)
            version = len(self._versions) + 1
            known[round_id] = VersionInfo(
                version, "adapter", round_id, run_id, *shas, lineage.parent, made, self.folder / run_id / made
            )
            self._versions.append(known[round_id])
        self._aliases["challenger"] = known[round_id].version
        return known[round_id]

    def promote(self, version: int) -> VersionInfo:
        champion = self._aliases["champion"]
        if champion != version:
            self._aliases |= {"previous": champion, "champion": version}
        return self.version(version)

    def rollback(self, version: int) -> VersionInfo:
        if self._aliases["champion"] == version:
            if "previous" not in self._aliases:
                raise RegistryError("there is nothing to go back to")
            self._aliases["champion"] = self._aliases.pop("previous")
        return self.champion()

    def champion(self) -> VersionInfo:
        return self.version(self._aliases["champion"])

    def version(self, version: int) -> VersionInfo:
        return self._versions[version - 1]

    def versions(self) -> tuple[VersionInfo, ...]:
        return tuple(self._versions)

    def alias(self, alias: Alias) -> int | None:
        return self._aliases.get(alias)

    def download(self, version: int, directory: Path) -> Path | None:
        info = self.version(version)
        return None if info.kind == "base" else self.get_adapter(info.run_id, directory, info.sha256)

    def _copy(self, source: Path, target: Path) -> Path:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        return target
