"""The process reward model of a run: loaded when the first answer needs it, and asked once per solution."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from graphs.filters.chain import StepRewards
from loop.config import ConfigError
from loop.offline.journal import Journal
from serving.engine import EngineError
from serving.step_rewards import RewardModel
from streams.files import text_sha256


class RememberedRewards:
    """A reward model whose rewards are kept in a journal, so that a run that was stopped does not ask
    again."""

    def __init__(self, folder: Path, model_id: str, journal: Journal) -> None:
        self._folder = folder
        self._model_id = model_id
        self._journal = journal
        self._lock = threading.Lock()

    @cached_property
    def _model(self) -> RewardModel:
        try:
            return RewardModel(self._folder)
        except EngineError as exc:
            raise ConfigError(f"filters.prm: {exc}") from exc

    def __call__(self, question: str, steps: Sequence[str]) -> list[float] | None:
        """See `graphs.filters.chain.StepRewards`. Raises `ConfigError` when the model cannot be loaded."""
        key = text_sha256("rewards", self._model_id, question, *steps)
        with self._lock:  # the model reads one solution at a time anyway
            known = self._journal.get(key)
            if known is None:
                known = json.dumps(self._model(question, steps))
                self._journal.put(key, known)
        rewards: list[float] | None = json.loads(known)
        return rewards


@contextmanager
def remembered_rewards(folder: Path | None, model_id: str, path: Path) -> Iterator[StepRewards | None]:
    """The configured reward model with its journal at `path`; None without a folder."""
    if folder is None:
        yield None
        return
    with Journal(path) as journal:
        yield RememberedRewards(folder, model_id, journal)
