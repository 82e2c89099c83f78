"""The run's directory: one JSONL file and one manifest per stage, and what makes a finished stage stand or
fall.

A stage is finished when its manifest says so: the manifest is written last and holds the hash of everything
the result depends on (settings, data files, results of earlier stages, teacher) and of the result itself.
When any of them differs the stage is done again; what a teacher or a student already answered is kept in
`work/` (replies.sqlite, and the journals of loop/offline/journal.py) and not asked again.

    DIR/catalog.jsonl ... DIR/dataset.jsonl    results
    DIR/manifests/<stage>.json                 markers, written after the result
    DIR/work/                                  what teacher, student and reward model said
    DIR/ledger.db                              what was paid
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, Field, FiniteFloat, ValidationError

from agent.items import Frozen
from loop.errors import LoopError
from streams.files import DataError, file_sha256, read_rows, text_sha256, write_rows, write_text

Row = TypeVar("Row", bound=BaseModel)


class RunBusy(LoopError):
    """Another process works in this directory."""


class StageManifest(Frozen):
    """What a finished stage depends on and what it made. `figures` are counts for the user, `notes`
    sentences."""

    stage: str
    inputs: Mapping[str, str]
    sha256: str
    rows: int
    figures: Mapping[str, FiniteFloat] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()


class RunFolder:
    """Reads and writes the results of stages under `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def work(self) -> Path:
        """Where answers are kept while a stage is under way, and after."""
        return self.root / "work"

    def path(self, stage: str) -> Path:
        """The result of a stage."""
        return self.root / f"{stage}.jsonl"

    def manifest(self, stage: str) -> StageManifest | None:
        """The manifest of a finished stage, or None."""
        try:
            return StageManifest.model_validate_json(self._manifest_path(stage).read_bytes())
        except (OSError, ValidationError):
            return None

    def is_finished(self, stage: str, inputs: Mapping[str, str]) -> bool:
        """Whether the result stands: same inputs, and the file is the one that was written."""
        manifest = self.manifest(stage)
        if manifest is None or dict(manifest.inputs) != dict(inputs):
            return False
        path = self.path(stage)
        return path.is_file() and file_sha256(path) == manifest.sha256

    def finish(
        self,
        stage: str,
        inputs: Mapping[str, str],
        rows: Sequence[BaseModel],
        figures: Mapping[str, float],
        notes: Sequence[str],
    ) -> StageManifest:
        """Write the result, then the manifest."""
        write_rows(self.path(stage), rows)
        done = StageManifest(
            stage=stage,
            inputs=dict(inputs),
            sha256=file_sha256(self.path(stage)),
            rows=len(rows),
            figures=dict(figures),
            notes=tuple(notes),
        )
        write_text(self._manifest_path(stage), done.model_dump_json(indent=1) + "\n")
        return done

    def forget(self, stage: str) -> None:
        """Take the marker away: the stage will be done again."""
        self._manifest_path(stage).unlink(missing_ok=True)

    def rows(self, stage: str, kind: type[Row]) -> list[Row]:
        """The result of a finished stage. Raises `DataError` when it is not there."""
        if self.manifest(stage) is None:
            raise DataError(
                f"{self.path(stage)} is not there yet; run the stages before it, or start with --from {stage}"
            )
        return read_rows(self.path(stage), kind)

    def result_sha256(self, stage: str) -> str:
        """The hash of a finished stage's result, empty when there is none."""
        manifest = self.manifest(stage)
        return manifest.sha256 if manifest else ""

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory. Raises `RunBusy` when another process does; a process that dies lets go."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as exc:
                raise RunBusy(
                    f"another process works in {self.root}; wait for it, or choose another folder with --run"
                ) from exc
            yield

    def _manifest_path(self, stage: str) -> Path:
        return self.root / "manifests" / f"{stage}.json"


def settings_sha256(*settings: BaseModel | str | int | float | None) -> str:
    """One hash over settings; secrets do not enter it."""
    return text_sha256(
        *(part.model_dump_json() if isinstance(part, BaseModel) else json.dumps(part) for part in settings)
    )
