"""The trainer port: how a round's examples become an adapter, whatever trains it.

Every trainer passes `training.testing.trainer_conformance`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from agent.items import Example

Progress = Callable[[int, int, float], None]
"""Called with (step, total steps, mean loss since the last call). What it raises stops the round and is not
caught: so a worker that lost its lease ends its training. On `StopTraining` a checkpoint is saved first,
where the trainer has any."""


class StopTraining(BaseException):
    """The process has to end: what was trained so far should be kept for the next one."""


def unwatched(step: int, total: int, loss: float) -> None:
    """A progress callback that does nothing."""


@dataclass(frozen=True)
class TrainingJob:
    """One round: `examples` teach the student in `base_dir`, starting from the champion's adapter (None: a
    fresh one).

    `batch_size` is examples per optimizer step over all devices, `steps` the whole budget, `max_length` the
    most tokens that an example may have. `out_dir` belongs to this job alone.
    """

    base_dir: Path
    champion: Path | None
    examples: Sequence[Example]
    out_dir: Path
    steps: int
    batch_size: int = 32
    max_length: int = 1024
    seed: int = 0


@dataclass(frozen=True)
class TrainedAdapter:
    """A finished round. `adapter_dir` is `out_dir / "adapter"`, in PEFT's format, and `sha256` its hash
    (`training.adapters`).

    `tokens` counts every trained row with its prompt, `seconds` all attempts up to their last checkpoint;
    `final_loss` is NaN for a round too short to report one; `too_long` counts examples that were
    left out because they exceed `max_length`.
    """

    adapter_dir: Path
    sha256: str
    steps: int
    seconds: float
    tokens: int
    final_loss: float
    too_long: int = 0


class Trainer(Protocol):
    """Trains rounds, one at a time."""

    def train(self, job: TrainingJob, on_progress: Progress = unwatched) -> TrainedAdapter:
        """Train the round.

        Called again with an equal job after a crash it resumes, or returns the finished result without
        training; the result is that of an undisturbed round. Raises `training.errors.TrainingError` and its
        children: `DatasetError` (no examples, an empty completion), `ExampleTooLong` (no example with
        something new to learn fits; nothing is truncated),
        `AdapterError` (a champion that does not fit),
        `serving.adapter_files.CorruptAdapter`, `TrainingDiverged`, `NothingLearned`, and
        `TrainingError` itself for an `out_dir` that belongs to another job.
        """
