"""Backfill: answers from a JSON Lines file into the event log. Resumable, idempotent; bad lines are reported
and counted.

A line is one of two things:

- our event, the fields of `StudentOutput` (docs/schemas/skillloop.student-output.v1.json); `event_id`,
  `student` and `student_version` may be absent;
- an OpenAI chat completion as it was logged, `{"request": {"messages": [...], "model": ..., "user": ...},
  "response": {"id": ..., "created": ..., "model": ..., "choices": [{"message": {"content": ...}}]}}`, with
  optional `session`, `feedback` ("up", "down") and `gold` beside them. The question is the last user message,
  every choice is an answer, and a model named `<name>-v12` is version 12 of its student.

An id that is absent is made from the line's bytes and number, so the same file gives the same events again
and the second copy of each is dropped as known. The position is kept beside the log after every page: a run
that stops resumes where it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from pydantic import ValidationError

from agent.items import JsonObject
from loop.errors import LoopError
from serving.gateway.completions import last_question, text_of
from streams.codec import MAX_BYTES, encode, first_error
from streams.events import StudentOutput, derived_id
from streams.files import read_json, write_json
from streams.log import EventLog, Outgoing

PAGE = 500
SHOWN = 20
_LINE_BYTES = 4 * MAX_BYTES
_VERSIONED = re.compile(r"-v([1-9][0-9]{0,8})$")


class IngestError(LoopError):
    """The file cannot be read; the message says what to do."""


class BadLine(Exception):
    """A line that is not an answer; the message says why."""


@dataclass(frozen=True)
class Defaults:
    """For lines that do not say whose answer they are."""

    student: str
    version: int = 1


@dataclass
class Ingested:
    """What a run did. `resumed_at` is the line it began after; `reasons` are the first bad lines."""

    resumed_at: int = 0
    lines: int = 0
    events: int = 0
    bad: int = 0
    reasons: list[str] = field(default_factory=list)


Progress = Callable[[int, int], None]


def ingest(
    path: Path, log: EventLog, folder: Path, defaults: Defaults, progress: Progress = lambda done, total: None
) -> Ingested:
    """Append the answers in `path` to the log; `folder` keeps the position; `progress` is told bytes done and
    in all.

    Raises `IngestError` for a file that cannot be read, `LogUnavailable` where the log fails: run it again,
    it resumes from there.
    """
    try:
        with path.open("rb") as file:
            return _ingest(file, path, log, _Position(path, folder), defaults, progress)
    except OSError as exc:
        raise IngestError(f"cannot read {path}: {exc}") from exc


def _ingest(
    file: BinaryIO, path: Path, log: EventLog, position: _Position, defaults: Defaults, progress: Progress
) -> Ingested:
    total = os.fstat(file.fileno()).st_size
    offset, number = position.load(file)
    done = Ingested(resumed_at=number)
    file.seek(offset)
    page: list[Outgoing] = []
    for line in _lines(file):
        number += 1
        offset = file.tell()
        if line is None or line.strip():
            _take(line, number, defaults, page, done)
        if len(page) >= PAGE or (done.lines and done.lines % PAGE == 0):
            page = _append(page, log, position, (offset, number), done)
            progress(offset, total)
    _append(page, log, position, (offset, number), done)
    progress(total, total)
    return done


def _append(
    page: list[Outgoing], log: EventLog, position: _Position, at: tuple[int, int], done: Ingested
) -> list[Outgoing]:
    if page:
        log.append(page)
        done.events += len(page)
    position.save(*at)
    return []


def _take(line: bytes | None, number: int, defaults: Defaults, page: list[Outgoing], done: Ingested) -> None:
    done.lines += 1
    try:
        if line is None:
            raise BadLine(f"longer than {_LINE_BYTES} bytes")
        records = [_record(event) for event in read_line(line, number, defaults)]
    except BadLine as exc:
        done.bad += 1
        if len(done.reasons) < SHOWN:
            done.reasons.append(f"line {number}: {exc}")
    else:
        page += records


def _lines(file: BinaryIO) -> Iterator[bytes | None]:
    """The file's lines; None for one that is too long to be an answer."""
    while line := file.readline(_LINE_BYTES):
        if len(line) < _LINE_BYTES or line.endswith(b"\n"):
            yield line
            continue
        while (rest := file.readline(_LINE_BYTES)) and not rest.endswith(b"\n"):
            pass
        yield None


def read_line(line: bytes, number: int, defaults: Defaults) -> list[StudentOutput]:
    """The answers of one line. Raises `BadLine`."""
    try:
        body = json.loads(line)
    except (ValueError, RecursionError) as exc:
        raise BadLine(f"not JSON: {exc}") from exc
    if not isinstance(body, dict):
        raise BadLine(f"a JSON {type(body).__name__}, expected an object")
    line_id = derived_id(hashlib.sha256(line.strip()).hexdigest(), f"line-{number}")
    if "response" in body:
        return [_event(fields) for fields in _completions(body, line_id, defaults)]
    who = {"event_id": line_id, "student": defaults.student, "student_version": defaults.version}
    return [_event(who | body)]


def _event(fields: JsonObject) -> StudentOutput:
    try:
        return StudentOutput.model_validate_json(json.dumps(fields))
    except (ValidationError, RecursionError) as exc:
        raise BadLine(first_error(exc)) from exc


def _record(event: StudentOutput) -> Outgoing:
    record = encode(event)
    if len(record.value) > MAX_BYTES:
        raise BadLine(f"{len(record.value)} bytes as an event, at most {MAX_BYTES} are accepted")
    return record


def _completions(body: JsonObject, line_id: str, defaults: Defaults) -> Iterator[JsonObject]:
    """The fields of the event of each choice."""
    request, response = body.get("request"), body["response"]
    if not isinstance(request, dict) or not isinstance(response, dict):
        raise BadLine("request and response must be objects")
    try:
        question = last_question(request["messages"])
        choices = [text_of(choice["message"]["content"]) for choice in response["choices"]]
        asked_at = datetime.fromtimestamp(float(response["created"]), UTC).isoformat()
    except StopIteration:
        raise BadLine("the request has no user message") from None
    except (KeyError, IndexError, TypeError, ValueError, OverflowError, OSError) as exc:
        raise BadLine(f"no chat completion: {type(exc).__name__}: {exc}") from exc
    cause = str(response["id"]) if response.get("id") else line_id
    student, version = _student(response.get("model") or request.get("model"), defaults)
    extra = {name: body[name] for name in ("feedback", "gold") if body.get(name) is not None}
    session = str(body.get("session") or request.get("user") or "")[:200]
    for number, answer in enumerate(choices):
        who = {
            "student": student,
            "student_version": version,
            "session": session,
            "event_id": derived_id(cause, f"choice-{number}"),
        }
        yield {**who, "occurred_at": asked_at, "question": question, "answer": answer, **extra}


def _student(model: object, defaults: Defaults) -> tuple[str, int]:
    versioned = _VERSIONED.search(str(model or ""))
    return defaults.student, int(versioned[1]) if versioned else defaults.version


class _Position:
    """How far a file was ingested, kept in a small file that is replaced as a whole."""

    def __init__(self, path: Path, folder: Path) -> None:
        self._file = (
            folder / "ingest" / f"{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}.json"
        )

    def load(self, file: BinaryIO) -> tuple[int, int]:
        """(bytes, lines) done; (0, 0) for a new file, or one whose beginning has changed."""
        saved = read_json(self._file) or {}
        file.seek(0)
        self._head = hashlib.sha256(file.read(4096).split(b"\n", 1)[0]).hexdigest()
        size = os.fstat(file.fileno()).st_size
        if saved.get("head") != self._head or saved.get("bytes", 0) > size:
            return 0, 0
        return int(saved["bytes"]), int(saved["lines"])

    def save(self, offset: int, number: int) -> None:
        """Remember the position."""
        write_json(self._file, {"head": self._head, "bytes": offset, "lines": number})
