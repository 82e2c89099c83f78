"""A directory of its own for each attempt at a training round, so that a worker that lost the round cannot
disturb the one that has it.

An attempt that follows a crash begins with a copy of the newest whole checkpoint of the attempts before it;
theirs stays as it is, since their worker may only be slow. A trainer that keeps something else than
`training.checkpoints` begins anew.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from training.checkpoints import CHECKPOINTS, INPUTS, RESULT, copy_checkpoint, whole_checkpoints

logger = logging.getLogger(__name__)

PREFIX = "attempt-"


def begin_attempt(folder: Path, number: int) -> Path:
    """Where attempt `number` (rising) works inside `folder`.

    That is an earlier attempt's directory when it has finished, and a new one otherwise. `folder` itself
    counts as the first attempt: rounds of earlier versions were trained there.
    """
    earlier = _earlier(folder, number)
    finished = next((path for path in earlier if (path / RESULT).is_file()), None)
    if finished is not None:
        return finished
    directory = folder / f"{PREFIX}{number}"
    if directory.is_dir():
        return directory
    draft = folder / f".{directory.name}.tmp"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    for path in earlier:
        if _resume(path, draft):
            logger.info("attempt %d of %s resumes from %s", number, folder, path.name)
            break
    draft.rename(directory)
    return directory


def sweep_attempts(folder: Path, kept: Path) -> None:
    """Delete the attempts that did not finish. A slow worker that still writes into one fails, and finds that
    it has lost the round."""
    for path in folder.glob(PREFIX + "*"):
        if path != kept:
            shutil.rmtree(path, ignore_errors=True)


def _earlier(folder: Path, number: int) -> list[Path]:
    """Directories of attempts before `number`, newest first."""
    numbers = (path.name.removeprefix(PREFIX) for path in folder.glob(PREFIX + "*"))
    before = sorted((int(text) for text in numbers if text.isdigit() and int(text) < number), reverse=True)
    return [*(folder / f"{PREFIX}{earlier}" for earlier in before), folder]


def _resume(source: Path, target: Path) -> bool:
    """Copy the newest whole checkpoint of another attempt; False when it has none, or its worker deleted it
    meanwhile."""
    for checkpoint in whole_checkpoints(source / CHECKPOINTS):
        try:
            copy_checkpoint(checkpoint, target / CHECKPOINTS / checkpoint.name)
            shutil.copyfile(source / INPUTS, target / INPUTS)
            return True
        except OSError as exc:
            logger.warning("%s cannot be copied, an older one is tried: %s", checkpoint, exc)
            shutil.rmtree(target / CHECKPOINTS, ignore_errors=True)
    return False
