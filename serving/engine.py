"""The engine port: how the loop gets answers from a student, whatever serves it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from agent.errors import SkillloopError


class EngineError(SkillloopError):
    """An engine could not load an adapter or generate; the message says why and what to do."""


class EngineUnavailable(EngineError):
    """No server of the student answers now. It says nothing about the question: ask again later."""


class StillAsleep(EngineUnavailable):
    """Servers that were told to wake did not, or do not say whether they sleep: their addresses."""

    def __init__(self, message: str, urls: tuple[str, ...]) -> None:
        super().__init__(message)
        self.urls = urls


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


class Scorer(Protocol):
    """An engine that says how likely a text is to it. Both engines of real students do."""

    def log_probabilities(
        self, texts: Sequence[Sequence[int]], candidates: Sequence[Sequence[int]], version: int
    ) -> list[list[float]]:
        """For each text, as token ids, the natural logarithm of the probability that each of its candidates
        is the next token. Raises `EngineError` for an unloaded version."""


@dataclass(frozen=True)
class ServedBy:
    """How a version is served: under which name, by which servers (addresses). `wanting` says why others do
    not serve it."""

    model: str
    ready: tuple[str, ...]
    wanting: Mapping[str, str]


@runtime_checkable
class LiveEngine(Engine, Protocol):
    """An engine whose servers answer users too: it is told what to keep on them."""

    def stand(self, version: int) -> ServedBy:
        """Make a loaded version stand on every server that answers, proven there, and say where it does.
        Servers that have lost it get it again; what fails on one is told in the result."""

    def models(self) -> Mapping[str, int]:
        """The versions of this student on any server that answers, by the name they are served under; the
        base is not among them."""

    def sleep(self) -> None:
        """Let the servers that share a device with training finish what is under way and leave its memory.
        Raises `EngineUnavailable` when one does not answer."""

    def wake(self) -> tuple[str, ...]:
        """Let them serve again; the addresses of those that had slept. Raises `StillAsleep` when some do not
        wake; the others do."""

    def take_off(self, models: Collection[str]) -> None:
        """Take versions off the servers, by name. What is under way there is finished."""
