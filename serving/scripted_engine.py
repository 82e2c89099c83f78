"""An engine whose answers come from a function: for tests and dry runs. Shipped, so that nothing has to be
patched."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from serving.adapter_files import adapter_sha256, tensor_shapes
from serving.engine import EngineError, Sampling

Answer = Callable[[str, int, int], str]


class ScriptedEngine:
    """Answers with `answer(prompt, version, sample)`.

    >>> engine = ScriptedEngine(lambda prompt, version, sample: f"{prompt} from v{version}")
    >>> engine.load(1, None)
    >>> engine.generate(["hi"], 1)
    [['hi from v1']]
    """

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._lock = threading.RLock()
        self._digests: dict[int, str | None] = {}

    def load(self, version: int, adapter: Path | None) -> None:
        """See `serving.engine.Engine.load`; adapter files must exist and be whole, though nothing is computed
        with them."""
        digest = None if adapter is None else adapter_sha256(adapter)
        if adapter is not None:
            tensor_shapes(adapter)
        with self._lock:
            if version in self._digests and self._digests[version] != digest:
                raise EngineError(
                    f"version {version} is loaded with other files; "
                    "versions are immutable, register a new one"
                )
            self._digests[version] = digest

    def unload(self, version: int) -> None:
        """Forget a version."""
        with self._lock:
            self._digests.pop(version, None)

    def versions(self) -> tuple[int, ...]:
        """The loaded versions, ascending."""
        with self._lock:
            return tuple(sorted(self._digests))

    def generate(
        self, prompts: Sequence[str], version: int, sampling: Sampling = Sampling()
    ) -> list[list[str]]:
        """Answers per prompt, shape (len(prompts), sampling.samples)."""
        with self._lock:
            if version not in self._digests:
                raise EngineError(f"version {version} is not loaded; loaded are {self.versions()}")
        return [
            [self._answer(prompt, version, sample) for sample in range(sampling.samples)]
            for prompt in prompts
        ]
