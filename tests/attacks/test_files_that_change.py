"""Attacks: a file is ingested while it is written, and again after it was rewritten, cut or rotated."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from loop.ingest import Defaults, Ingested, ingest
from streams.codec import Codec
from streams.files import write_json
from streams.memory_log import MemoryLog

WHO = Defaults("demo")


def line(number: int, **more: Any) -> bytes:
    body = {"occurred_at": "2026-01-01T00:00:00Z", "question": f"{number}?", "answer": str(number), **more}
    return json.dumps(body).encode() + b"\n"


@pytest.fixture
def log() -> MemoryLog:
    return MemoryLog()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "answers.jsonl"


def run(path: Path, log: MemoryLog) -> Ingested:
    return ingest(path, log, path.parent, WHO)


def counted(log: MemoryLog) -> int:
    """What the profile would count: each event once."""
    return len({Codec().decode(record).identity for record in log.read("student-outputs")})


@pytest.mark.parametrize("cut", [1, 20, 40, 60])
def test_a_half_written_last_line_is_read_when_it_is_whole(path: Path, log: MemoryLog, cut: int) -> None:
    """It was counted as bad and never looked at again: 2 of 3."""
    last = line(3)
    path.write_bytes(line(1) + line(2) + last[:cut])
    done = run(path, log)
    assert (done.events, done.bad, done.unfinished) == (2, 0, True)
    assert run(path, log).lines == 0
    with path.open("ab") as file:
        file.write(last[cut:] + line(4))
    done = run(path, log)
    assert (done.resumed_at, done.events, done.bad, done.unfinished) == (2, 2, 0, False)
    assert counted(log) == 4


def test_a_last_line_without_a_line_break_is_read_at_once_and_once(path: Path, log: MemoryLog) -> None:
    path.write_bytes(line(1) + line(2).rstrip())
    assert run(path, log).events == 2
    with path.open("ab") as file:
        file.write(b"\n" + line(3))
    assert run(path, log).events == 1
    assert counted(log) == 3


def test_a_rewritten_file_with_the_same_first_line_loses_nothing(path: Path, log: MemoryLog) -> None:
    """99 of 150 were taken for read."""
    path.write_bytes(b"".join(line(n) for n in range(100)))
    run(path, log)
    path.write_bytes(line(0) + b"".join(line(n) for n in range(100, 249)))
    done = run(path, log)
    assert (done.resumed_at, done.events) == (0, 150)
    assert counted(log) == 249


def test_a_rotated_file_counts_no_line_twice(path: Path, log: MemoryLog) -> None:
    path.write_bytes(b"".join(line(n) for n in range(50)))
    run(path, log)
    path.write_bytes(b"".join(line(n) for n in range(30, 80)))  # the first thirty are gone
    run(path, log)
    assert counted(log) == 80


def test_equal_lines_are_different_answers_however_often_the_file_is_read(
    path: Path, log: MemoryLog, tmp_path: Path
) -> None:
    path.write_bytes(line(1) * 3)
    run(path, log)
    with path.open("ab") as file:
        file.write(line(1) * 2)
    run(path, log)
    assert counted(log) == 5
    ingest(path, log, tmp_path / "elsewhere", WHO)
    assert counted(log) == 5


def test_a_file_that_was_cut_begins_anew(path: Path, log: MemoryLog) -> None:
    path.write_bytes(line(1) + line(2))
    run(path, log)
    path.write_bytes(line(3))
    assert run(path, log).events == 1
    assert counted(log) == 3


def test_a_line_that_is_too_long_waits_for_its_end_too(path: Path, log: MemoryLog) -> None:
    path.write_bytes(line(1) + b"x" * (9 * 2**20))
    assert run(path, log).unfinished
    with path.open("ab") as file:
        file.write(b"y\n" + line(2))
    done = run(path, log)
    assert (done.events, done.bad) == (1, 1)
    assert run(path, log).lines == 0


def test_a_position_of_the_version_before_is_believed(path: Path, log: MemoryLog) -> None:
    path.write_bytes(line(1) + line(2) + line(3))
    name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    head = hashlib.sha256(line(1).rstrip(b"\n")).hexdigest()
    known = {"head": head, "bytes": len(line(1) + line(2)), "lines": 2}
    write_json(path.parent / "ingest" / f"{name}.json", known)
    assert (run(path, log).events, counted(log)) == (1, 1)
