"""Checkpoints that a killed round can trust.

The trainer writes a checkpoint file by file, so a kill can leave half of one. A marker with the hash of every
file is written last; a checkpoint without a marker, or with other bytes, is deleted when the round resumes.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from streams.files import files_sha256, read_json, write_json
from training.errors import TrainingError

MARKER = "complete.json"
CHECKPOINTS = "checkpoints"  # the folder of a training directory
PREFIX = "checkpoint-"
INPUTS = "inputs.json"
RESULT = "result.json"


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
            f"{out_dir} was begun with other settings, data, base or champion; "
            "give this round its own directory"
        )


class Marker(NamedTuple):
    """What a whole checkpoint says of itself: the hash of its files, the training seconds up to it, the last
    reported loss."""

    sha256: str
    seconds: float
    loss: float


def mark_complete(checkpoint: Path, seconds: float, loss: float) -> None:
    """Write the marker, last of all files of a checkpoint."""
    marker = Marker(files_sha256(checkpoint, _files(checkpoint)), seconds, loss)
    write_json(checkpoint / MARKER, marker._asdict())


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
