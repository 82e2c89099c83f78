"""The engine port: how the loop gets answers from a student, whatever serves it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from agent.errors import SkillloopError


class EngineError(SkillloopError):
    """An engine could not load an adapter or generate; the message says why and what to do."""


@dataclass(frozen=True)
class Sampling:
    """How to decode. `temperature` 0 is greedy; `samples` answers per prompt; `seed` fixes sampled
    decoding."""

    max_new_tokens: int = 96
    temperature: float = 0.0
    samples: int = 1
    seed: int = 0


class Engine(Protocol):
    """Answers prompts with one version of the student at a time; a batch never mixes versions."""

    def load(self, version: int, adapter: Path | None) -> None:
        """Make `version` servable: the base alone (`adapter` None) or the base with the adapter in that
        directory.

        Loading a loaded version again with the same files is a no-op; with other files it is an
        `EngineError`, since a version is immutable. Raises `EngineError` for a corrupt or foreign adapter.
        """

    def unload(self, version: int) -> None:
        """Forget a version; unknown versions are ignored."""

    def versions(self) -> tuple[int, ...]:
        """The loaded versions, ascending."""

    def generate(
        self, prompts: Sequence[str], version: int, sampling: Sampling = Sampling()
    ) -> list[list[str]]:
        """Answers per prompt, shape (len(prompts), sampling.samples). Raises `EngineError` for an unloaded
        version."""
