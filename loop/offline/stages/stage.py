"""What a stage is: a name, the hashes its result depends on, and the work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import BaseModel

from loop.offline.bench import Bench


@dataclass(frozen=True)
class Result:
    """What a stage made: rows for its file, figures for the manifest, sentences for the user."""

    rows: Sequence[BaseModel]
    figures: Mapping[str, float] = field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Stage:
    """One stage. `inputs` are cheap to compute and name everything that `run` depends on."""

    name: str
    inputs: Callable[[Bench], dict[str, str]]
    run: Callable[[Bench], Result]
