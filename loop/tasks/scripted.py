"""A teacher for `skillloop stat` without a language model, for tests and dry runs: its replies come from a
script file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from agent.items import JsonObject
from graphs.teacher import Diagnosis
from graphs.testing.scripted import Call, ScriptedTeacher
from streams.files import DataError


def scripted_teacher(script: Path | None) -> ScriptedTeacher:
    """The teacher of a script: a JSON object with `labels` (question -> skills), `missing` (question ->
    skills; without it, the first two needed ones) and `calls` (a file that gets one line for every call,
    relative to the script).

    Every answer it is shown is wrong; a question's fine skill is its first label. Raises `DataError`.
    """
    said = _read(script) if script is not None else {}
    labels: Mapping[str, Sequence[str]] = said.get("labels", {})
    missing: Mapping[str, Sequence[str]] = said.get("missing", {})
    return ScriptedTeacher(
        labels=labels,
        names=lambda question: next(iter(labels.get(question, ())), ""),
        diagnoses=lambda question, answer, needed: _diagnosis(missing.get(question, needed[:2]), answer),
        log=CallFile(script.parent / said["calls"]) if script is not None and "calls" in said else None,
    )


def _read(script: Path) -> JsonObject:
    try:
        said = json.loads(script.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise DataError(f"cannot read the script {script}: {exc}") from exc
    if not isinstance(said, dict):
        raise DataError(f"the script {script} is not a JSON object")
    return said


def _diagnosis(missing: Sequence[str], answer: str) -> Diagnosis:
    return Diagnosis(verdict="incorrect", evidence=answer[:20], missing=tuple(missing))


class CallFile:
    """Appends one line for each call, in one write, so that calls can be counted over several processes."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def __call__(self, call: Call) -> None:
        os.write(self._file, (json.dumps([call.method, call.subject]) + "\n").encode())
