"""A table of kinds: the one place where a choice's names stand, and where a plugin adds its own
(docs/extending.md)."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

from agent.errors import AgentError

T = TypeVar("T")


class UnknownKind(AgentError, ValueError):
    """A name that is in no row of its table; the message says which is meant, or which there are."""


class Table(Mapping[str, T], Generic[T]):
    """Rows by kind. `noun` says what is chosen, for messages.

    >>> table = Table("engine", {"transformers": 1})
    >>> table.add("echo", 2)
    >>> table.choose("echo"), list(table)
    (2, ['transformers', 'echo'])
    >>> table.choose("ecco")
    Traceback (most recent call last):
    agent.table.UnknownKind: unknown engine 'ecco'; did you mean 'echo'?
    """

    def __init__(self, noun: str, rows: Mapping[str, T]) -> None:
        self.noun = noun
        self._rows = dict(rows)

    def add(self, kind: str, row: T) -> None:
        """Add a row. Raises `ValueError` when the kind is taken (nothing is replaced by accident), or the row
        cannot be called as the table's others are."""
        if kind in self._rows:
            raise ValueError(f"the {self.noun} {kind!r} exists already; register yours under another name")
        pattern = next(filter(callable, self._rows.values()), None)
        if pattern is not None and not _callable_as(row, pattern):
            wanted = ", ".join(inspect.signature(pattern).parameters)
            raise ValueError(
                f"the {self.noun} {kind!r} must be a function of {wanted} (docs/extending.md); it is {row!r}"
            )
        self._rows[kind] = row

    def choose(self, kind: str) -> T:
        """The row of a kind. Raises `UnknownKind`."""
        if kind not in self._rows:
            near = difflib.get_close_matches(kind, self._rows, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(self._rows)}"
            raise UnknownKind(f"unknown {self.noun} {kind!r}; {hint}")
        return self._rows[kind]

    def __getitem__(self, kind: str) -> T:
        return self._rows[kind]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


def _callable_as(row: object, pattern: Callable[..., object]) -> bool:
    """Whether `row` takes as many arguments as `pattern`; what hides its signature is believed."""
    if not callable(row):
        return False
    try:
        inspect.signature(row).bind(*inspect.signature(pattern).parameters)
    except TypeError:
        return False
    except ValueError:
        return True
    return True
