"""The trainer port: how a round's examples become an adapter, whatever trains it.

Every trainer passes `training.testing.trainer_conformance`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from agent.items import Example

Progress = Callable[[int, int, float], None]
"""Called with (step, total steps, mean loss since the last call). What it raises stops the round and is not
caught: so a worker that lost its lease ends its training. On `StopTraining` a checkpoint is saved first,
where the trainer has any."""


Right = Callable[[str, str], bool | None]
"""(an example's completion, a student's answer to its prompt) -> right, wrong, or None: cannot tell."""


class StopTraining(BaseException):
    """The process has to end: what was trained so far should be kept for the next one."""


def unwatched(step: int, total: int, loss: float) -> None:
    """A progress callback that does nothing."""


@dataclass(frozen=True)
class BaseName:
    """What an adapter calls its base, so that PEFT finds it: a repository of the Hub with a commit, or an
    absolute folder with the base's own hash."""

    name: str
    revision: str


@dataclass(frozen=True)
class CurvePoint:
    """The mean loss and gradient norm since the point before, the learning rate, the tokens trained per
    second so far, and when (milliseconds since 1970)."""

    step: int
    loss: float
    learning_rate: float
    grad_norm: float
    tokens_per_s: float
    at_ms: int


@dataclass(frozen=True)
class TrainingJob:
    """One round: `examples` teach the student in `base_dir`, starting from the champion's adapter (None: a
    fresh one).

    `batch_size` is examples per optimizer step over all devices, `steps` the whole budget, `max_length` the
    most tokens that an example may have. `out_dir` belongs to this job alone. `base_name` is what the adapter
    calls its base; None: as `training.adapters.base_name` finds it. `right` grades answers, for trainers that
    need it; it is no part of what the round is.
    """

    base_dir: Path
    champion: Path | None
    examples: Sequence[Example]
    out_dir: Path
    steps: int
    batch_size: int = 32
    max_length: int = 1024
    seed: int = 0
    base_name: BaseName | None = None
    right: Right | None = field(default=None, compare=False)


@dataclass(frozen=True)
class TrainedAdapter:
    """A finished round. `adapter_dir` is `out_dir / "adapter"`, in PEFT's format, and `sha256` its hash
    (`training.adapters`).

    `tokens` counts every trained row with its prompt, `seconds` all attempts up to their last checkpoint;
    `final_loss` is NaN for a round too short to report one; `left_out` names the examples that were not
    trained on because they exceed `max_length`; `curve` is what the trainer reported, by step.
    """

    adapter_dir: Path
    sha256: str
    steps: int
    seconds: float
    tokens: int
    final_loss: float
    left_out: tuple[str, ...] = ()
    curve: tuple[CurvePoint, ...] = ()

    @property
    def too_long(self) -> int:
        """How many examples were left out."""
        return len(self.left_out)


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
