"""Checkpoints that a killed round can trust.

The trainer writes a checkpoint file by file, so a kill can leave half of one. A marker with the hash of every
file is written last; a checkpoint without a marker, or with other bytes, is deleted when the round resumes.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from training.adapters import files_sha256
from training.errors import TrainingError

MARKER = "complete.json"
PREFIX = "checkpoint-"
INPUTS = "inputs.json"
RESULT = "result.json"


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write JSON under a temporary name, then rename: a reader sees all of it or none."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file, or None when there is no such file or it is not whole."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def claim(out_dir: Path, fingerprint: str) -> None:
    """Tie a directory to one round's exact inputs.

    Raises `TrainingError` when it belongs to other inputs: its checkpoints would continue the wrong run.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    path = out_dir / INPUTS
    known = read_json(path)
    if known is None:
        write_json(path, {"fingerprint": fingerprint})
    elif known.get("fingerprint") != fingerprint:
        raise TrainingError(
            f"{out_dir} was begun with other settings, data, base or champion; give this round its own"
            " directory"
        )


class Marker(NamedTuple):
    """What a whole checkpoint says of itself: the hash of its files, the training seconds up to it, the last
    reported loss."""

    sha256: str
    seconds: float
    loss: float


def mark_complete(checkpoint: Path, seconds: float, loss: float) -> None:
    """Write the marker, last of all files of a checkpoint."""
    write_json(
        checkpoint / MARKER, Marker(files_sha256(checkpoint, _files(checkpoint)), seconds, loss)._asdict()
    )


def read_marker(checkpoint: Path | None) -> Marker | None:
    """The marker of a checkpoint, or None when there is no checkpoint or it has none."""
    found = read_json(checkpoint / MARKER) if checkpoint is not None else None
    return Marker(**found) if found is not None else None


def last_complete(directory: Path) -> Path | None:
    """The newest whole checkpoint, or None. Newer ones that are not whole are deleted."""
    for checkpoint in _newest_first(directory):
        if is_whole(checkpoint):
            return checkpoint
        shutil.rmtree(checkpoint)
    return None


def whole_checkpoints(directory: Path) -> Iterator[Path]:
    """The whole checkpoints, newest first. Nothing is deleted: the directory may be in use."""
    return (checkpoint for checkpoint in _newest_first(directory) if is_whole(checkpoint))


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint has its marker and the files that the marker describes."""
    marker = read_marker(checkpoint)
    try:
        return marker is not None and marker.sha256 == files_sha256(checkpoint, _files(checkpoint))
    except OSError:
        return False


def copy_checkpoint(checkpoint: Path, target: Path) -> None:
    """Copy a checkpoint, its marker last. Raises `OSError` when it is deleted meanwhile."""
    shutil.copytree(checkpoint, target, ignore=shutil.ignore_patterns(MARKER))
    shutil.copyfile(checkpoint / MARKER, target / MARKER)


def _newest_first(directory: Path) -> list[Path]:
    paths = directory.glob(PREFIX + "*")
    return sorted(paths, key=lambda path: int(path.name.removeprefix(PREFIX)), reverse=True)


def _files(checkpoint: Path) -> list[str]:
    return [path.name for path in checkpoint.iterdir() if path.is_file() and MARKER not in path.name]
