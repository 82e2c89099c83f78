"""What a run has paid: one line for every call that was answered. The cap counts all of them, also those of
earlier starts."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import ValidationError

from agent.budget import LedgerEntry, Usage

ROUND = "stat"
"""All calls of a run are booked on one round, so that a cap per round is a cap per run."""


class LedgerFile:
    """A `graphs.chat.meter.LedgerSink` on a JSONL file. A line that a kill cut short is left out when it is
    read."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        data = path.read_bytes()
        os.ftruncate(self._file, data.rfind(b"\n") + 1)

    def __call__(self, entry: LedgerEntry) -> None:
        os.write(self._file, (entry.model_dump_json() + "\n").encode())

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def read_ledger(path: Path) -> list[LedgerEntry]:
    """All entries of a ledger file, none when it does not exist."""
    if not path.is_file():
        return []
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entries.append(LedgerEntry.model_validate_json(line))
        except ValidationError:
            continue  # the last line of a process that died
    return entries


def paid(path: Path) -> Usage:
    """What the run has paid so far."""
    return sum((entry.usage for entry in read_ledger(path)), Usage())
