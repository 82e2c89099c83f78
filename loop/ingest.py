"""Backfill: answers from a JSON Lines file into the event log. Resumable, idempotent; bad lines are reported
and counted.

A line is one of two things:

- our event, the fields of `StudentOutput` (docs/schemas/skillloop.student-output.v1.json); `event_id`,
  `student` and `student_version` may be absent;
- an OpenAI chat completion as it was logged, `{"request": {"messages": [...], "model": ..., "user": ...},
  "response": {"id": ..., "created": ..., "model": ..., "choices": [{"message": {"content": ...}}]}}`, with
  optional `session`, `feedback` ("up", "down") and `gold` beside them. The question is the last user message,
  every choice is an answer, and the model that the response names (the request, where the response names
  none) says which version gave it (`[ingest.models]`). A line of any other model is left out and counted,
  also where our student was asked for: a router gave the question to another.

An id that is absent is made from the line's content (and how many lines like it came before), so the same
lines give the same events again, wherever in the file they stand, and the second copy of each is dropped as
known. The position is kept beside the log after every page: a run that stops resumes where it was, if what it
had read is unchanged. A last line without its end waits for the next run.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from agent.items import JsonObject
from loop.errors import LoopError
from loop.resume import ResumedFile
from serving.gateway.completions import last_question, text_of
from streams.codec import MAX_BYTES, encode, first_error
from streams.events import StudentOutput, derived_id
from streams.log import EventLog, Outgoing

PAGE = 500
SHOWN = 20
_LINE_BYTES = 4 * MAX_BYTES
_NUMBER = "([1-9][0-9]{0,8})"
OUR_EVENT = "(our event)"
NO_MODEL = "(no model named)"


class IngestError(LoopError):
    """The file cannot be read; the message says what to do."""


class BadLine(Exception):
    """A line that is not an answer; the message says why."""


class NotOurs(Exception):
    """A line of a model that is not our student; the message is the model's name."""


@dataclass(frozen=True)
class Defaults:
    """Whose answers lines are: `student` and `version` of those that do not say it, and `models`, names of
    models with the version that each is (loop.config.IngestSection)."""

    student: str
    version: int = 1
    models: Mapping[str, int | Literal["*"]] = field(default_factory=dict)

    @property
    def mark(self) -> str:
        """What decides which lines are left out: with another mapping a file is read again from its start."""
        return json.dumps(dict(self.models), sort_keys=True) if self.models else ""

    @cached_property
    def _rows(self) -> list[tuple[re.Pattern[str], int | Literal["*"]]]:
        rows = self.models or {self.student: self.version, f"{self.student}-v*": "*"}
        return [(re.compile(_pattern(name, version)), version) for name, version in rows.items()]

    def match(self, name: str, asked_for: str = "") -> int:
        """The version that this model is of our student: what its own name says, else what the name says that
        was asked for (LiteLLM's proxy answers under the public name). Raises `NotOurs`, which says so where
        the request asked for a name that is our student's."""
        (version, says), (asked_version, asked_says) = self._version(name), self._version(asked_for)
        if version is None:
            asked = f" (asked for as {asked_for})" if asked_version is not None else ""
            raise NotOurs(f"{name or NO_MODEL}{asked}")
        return asked_version if asked_version is not None and asked_says and not says else version

    def _version(self, name: str) -> tuple[int | None, bool]:
        """The version of a name, and whether the name itself says it."""
        for pattern, version in self._rows:
            if matched := pattern.fullmatch(name):
                return (int(matched[1]), True) if version == "*" else (version, False)
        return None, False


def _pattern(name: str, version: int | Literal["*"]) -> str:
    """A name with a star as a regular expression: the star is the version, or any text."""
    return re.escape(name).replace(r"\*", _NUMBER if version == "*" else ".*")


@dataclass
class Ingested:
    """What a run did. `resumed_at` is the line it began after; `reasons` are the first bad lines;
    `unfinished`: the last line has no end yet and waits. `taken` counts answers by model, student and
    version, `left_out` lines by model."""

    resumed_at: int = 0
    lines: int = 0
    events: int = 0
    bad: int = 0
    unfinished: bool = False
    reasons: list[str] = field(default_factory=list)
    taken: Counter[tuple[str, str, int]] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)


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
            return _ingest(
                ResumedFile(file, path, folder, _LINE_BYTES, defaults.mark), log, defaults, progress
            )
    except OSError as exc:
        raise IngestError(f"cannot read {path}: {exc}") from exc


def check_readable(path: Path) -> None:
    """Raises `IngestError` for a file that cannot be read."""
    try:
        path.open("rb").close()
    except OSError as exc:
        raise IngestError(f"cannot read {path}: {exc}") from exc


def preview(path: Path, defaults: Defaults) -> Ingested:
    """What `ingest` would do with the whole of `path`; nothing is written. Raises `IngestError`."""
    done = Ingested()
    try:
        with path.open("rb") as opened:
            file = ResumedFile(opened, path, None, _LINE_BYTES)
            for line, ended in file.lines():
                if not ended and _is_cut(line):
                    done.unfinished = True
                    break
                if line is None or line.strip():
                    page: list[Outgoing] = []
                    _take(line, file, defaults, page, done)
                    done.events += len(page)
                file.take(line)
    except OSError as exc:
        raise IngestError(f"cannot read {path}: {exc}") from exc
    return done


def _ingest(file: ResumedFile, log: EventLog, defaults: Defaults, progress: Progress) -> Ingested:
    total = file.size
    done = Ingested(resumed_at=file.number)
    page: list[Outgoing] = []
    for line, ended in file.lines():
        if not ended and _is_cut(line):
            done.unfinished = True
            break
        if line is None or line.strip():
            _take(line, file, defaults, page, done)
        file.take(line)
        if len(page) >= PAGE or (done.lines and done.lines % PAGE == 0):
            page = _append(page, log, file, done)
            progress(min(file.offset, total), total)
    _append(page, log, file, done)
    progress(total, total)
    return done


def _append(page: list[Outgoing], log: EventLog, file: ResumedFile, done: Ingested) -> list[Outgoing]:
    if page:
        log.append(page)
        done.events += len(page)
    file.save()
    return []


def _take(
    line: bytes | None, file: ResumedFile, defaults: Defaults, page: list[Outgoing], done: Ingested
) -> None:
    done.lines += 1
    try:
        if line is None:
            raise BadLine(f"longer than {_LINE_BYTES} bytes")
        model, events = read_line(line, file.copies(line), defaults)
        records = [_record(event) for event in events]
    except NotOurs as exc:
        done.left_out[str(exc)] += 1
    except BadLine as exc:
        done.bad += 1
        if len(done.reasons) < SHOWN:
            done.reasons.append(f"line {file.number + 1}: {exc}")
    else:
        page += records
        done.taken.update((model, event.student, event.student_version) for event in events)


def _is_cut(line: bytes | None) -> bool:
    """Whether a line without a line break is still being written: a whole JSON object has an end."""
    try:
        return line is None or not isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return True


def read_line(line: bytes, copies: int, defaults: Defaults) -> tuple[str, list[StudentOutput]]:
    """The model that one line names, and its answers; `copies` lines with the same content came before it.
    Raises `BadLine`, `NotOurs`."""
    try:
        body = json.loads(line)
    except (ValueError, RecursionError) as exc:
        raise BadLine(f"not JSON: {exc}") from exc
    if not isinstance(body, dict):
        raise BadLine(f"a JSON {type(body).__name__}, expected an object")
    line_id = derived_id(hashlib.sha256(line.strip()).hexdigest(), f"copy-{copies}")
    if "response" in body:
        events = [_event(fields) for fields in _completions(body, line_id, defaults)]
        return _models(body)[0] or NO_MODEL, events
    who = {"event_id": line_id, "student": defaults.student, "student_version": defaults.version}
    return OUR_EVENT, [_event(who | body)]


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
    if not choices:
        raise BadLine("no choices: the completion has no answer")
    cause = str(response["id"]) if response.get("id") else line_id
    version = defaults.match(*_models(body))
    extra = {name: body[name] for name in ("feedback", "gold") if body.get(name) is not None}
    session = str(body.get("session") or request.get("user") or "")[:200]
    for number, answer in enumerate(choices):
        who = {
            "student": defaults.student,
            "student_version": version,
            "session": session,
            "event_id": derived_id(cause, f"choice-{number}"),
        }
        yield {**who, "occurred_at": asked_at, "question": question, "answer": answer, **extra}


def _models(body: JsonObject) -> tuple[str, str]:
    """The model that made a completion, and the one that was asked for: they differ where a router chose
    another. The response names it, else the request; "" where neither says."""
    made, asked = (str(body[part].get("model") or "") for part in ("response", "request"))
    return made or asked, asked
