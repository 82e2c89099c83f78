"""The errors of this package. Only `RegistryUnavailable` may pass by itself; every other one needs a person
or a new round."""

from __future__ import annotations

from agent.errors import SkillloopError


class TrainingError(SkillloopError):
    """Root of what this package raises, besides `serving.adapter_files.CorruptAdapter`. A round that meets
    either is not promoted."""


class DatasetError(TrainingError):
    """A training set is empty, damaged, or does not match its manifest."""


class HeldOutOverlap(DatasetError):
    """A training example repeats a held-out question, which would make the evaluation meaningless."""


class ExampleTooLong(DatasetError):
    """No example that teaches something new fits the length limit."""


class AdapterError(TrainingError):
    """A whole adapter cannot be used for this base or these settings."""


class TrainingDiverged(TrainingError):
    """The loss or the weights became NaN or infinite."""


class NothingLearned(TrainingError):
    """Training finished but the trainable weights did not move, so nothing was taught."""


class EvaluationFailed(TrainingError):
    """An evaluation could not be completed; there is never a partial result."""


class ItemSetMismatch(EvaluationFailed):
    """Two evaluations were not measured on the same items and cannot be compared."""


class RegistryError(TrainingError):
    """The registry refused, or holds something that contradicts what was asked."""


class NothingRegistered(RegistryError):
    """The registry was only looked at, and has nothing of the student."""


class ArtifactError(RegistryError):
    """A file that a run should hold is not there, or has other bytes than those stored."""


class RegistryUnavailable(RegistryError):
    """The registry cannot answer now; nothing is wrong with the request. Retry with back-off."""
