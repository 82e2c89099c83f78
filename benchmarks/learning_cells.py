"""The cells of `benchmarks.learning`: what one is, and the JSON-lines file that keeps the finished ones.

A cell is one training run with its scores. Its settings are its key: a cell that is in the file is never run
again, and a process that dies loses the one it was at. `PROTOCOL` is raised by hand when what a cell means
changes; cells of another protocol are not read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from agent.items import Frozen

PROTOCOL = 1
CELLS = Path(__file__).with_name("learning_cells.jsonl")
Split = Literal["gate", "exam"]
SHIPPED = "shipped"
"""The method that trains nothing: the student as it is shipped."""
LRS = (1e-3, 2e-3, 5e-3)
DEFAULT_LR = 2e-3
LR_OF = {
    "failed": "watched",
    "hard": "vanilla",
    "augment": "vanilla",
    **dict.fromkeys(("random", "shuffled", "question-skill", "mix", "embed-sel"), "stat-sel"),
    "embed-syn": "stat-syn",
}
"""Methods without a search of their own take the rate of the method that they are a variant of."""


@dataclass(frozen=True, order=True)
class Cell:
    """One cell. `replay`: a row of `learning_data.REPLAYS`; `blend`: the share of the challenger in the
    weights that are scored, 1 for all of it; `split`: where it is scored, `gate` for validation; `items`: how
    many of each skill; `size`: a row of `learning_data.SIZES`."""

    seed: int
    method: str
    scenario: str = "narrow"
    arch: str = "llama"
    replay: str = "loop"
    lr: float = DEFAULT_LR
    steps: int = 160
    blend: float = 1.0
    split: Split = "exam"
    items: int = 200
    size: str = "full"

    def trained(self) -> Cell:
        """The cell whose weights this one scores."""
        return replace(self, blend=1.0, split="exam", items=Cell.items)

    def base(self) -> Cell:
        """The shipped student on the same items."""
        plain = Cell(0, SHIPPED, scenario=self.scenario, arch=self.arch, split=self.split, items=self.items)
        return replace(plain, replay="none", lr=0.0, steps=0)

    def family(self) -> tuple[object, ...]:
        """Everything but seed and learning rate: what the rows of a table are made of."""
        settings = asdict(self)
        return tuple(settings[name] for name in sorted(settings) if name not in ("seed", "lr"))


class Result(Frozen):
    """What a cell came to. `strata`: right answers and items of each evaluation set; `gained` and `lost`:
    answers that became right or wrong against the shipped student. `new` and `replayed` count distinct
    examples, `calls` and `teacher_tokens` what the teacher was asked for this data (its diagnoses included),
    `targets` are the skills that the policy decided on."""

    strata: Mapping[str, tuple[int, int]]
    gained: Mapping[str, int] = {}
    lost: Mapping[str, int] = {}
    tokens: int = 0
    new: int = 0
    replayed: int = 0
    calls: int = 0
    teacher_tokens: int = 0
    watched: int = 0
    targets: tuple[str, ...] = ()
    seconds: float = 0.0
    right: str = ""


class CellFile:
    """Finished cells by their key, appended one line at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._results: dict[Cell, Result] = dict(read_cells(path))

    def __getitem__(self, cell: Cell) -> Result:
        return self._results[cell]

    def __contains__(self, cell: Cell) -> bool:
        return cell in self._results

    def __iter__(self) -> Iterator[Cell]:
        return iter(self._results)

    def items(self) -> Iterable[tuple[Cell, Result]]:
        """Cells with their results, in the order in which they were finished."""
        return self._results.items()

    def add(self, cell: Cell, result: Result) -> None:
        """Keep a finished cell; its line is on disk when this returns. A torn last line is cut off first."""
        line = json.dumps(
            {"protocol": PROTOCOL, **asdict(cell)} | {"result": result.model_dump(exclude_defaults=True)}
        )
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab+") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            whole = file.read().rfind(b"\n") + 1
            if whole < size:
                file.truncate(whole)
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._results[cell] = result


def read_cells(path: Path) -> Iterator[tuple[Cell, Result]]:
    """The cells of a file; a torn line, which a crash left, is passed over."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row: dict[str, Any] = json.loads(line)
        except ValueError:
            continue
        result = Result.model_validate(row.pop("result"))
        if row.pop("protocol") == PROTOCOL:
            yield Cell(**row), result
