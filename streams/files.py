"""JSON lines on disk: read plain or gzipped, write whole files under a temporary name, hash them."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from streams.errors import StreamsError

Row = TypeVar("Row", bound=BaseModel)


class DataError(StreamsError):
    """A data file cannot be used; the message names the file, the line and what to write instead."""


def read_objects(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a `.jsonl` or `.jsonl.gz` file, in order; blank lines are left out. Raises
    `DataError`."""
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8")
            if path.suffix == ".gz"
            else path.open(encoding="utf-8") as file
        ):
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _object(line, path, number)
    except (OSError, UnicodeDecodeError) as exc:
        raise DataError(f"cannot read {path}: {exc}") from exc


def _object(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as exc:
        raise DataError(f"{path}, line {number}: not JSON ({exc}); write one JSON object a line") from exc
    if not isinstance(value, dict):
        raise DataError(f"{path}, line {number}: {type(value).__name__} instead of a JSON object")
    return value


def read_rows(path: Path, kind: type[Row]) -> list[Row]:
    """The rows of a stage's result. Raises `DataError` when one is not of its kind."""
    rows: list[Row] = []
    for number, value in enumerate(read_objects(path), 1):
        try:
            rows.append(kind.model_validate(value))
        except ValidationError as exc:
            first = exc.errors()[0]
            key = ".".join(map(str, first["loc"]))
            raise DataError(f"{path}, line {number}: {key}: {first['msg']}") from exc
    return rows


def write_rows(path: Path, rows: Iterable[BaseModel]) -> None:
    """Write rows under a temporary name, then rename: a reader sees all of them or none. Equal rows give
    equal bytes."""
    write_text(path, "".join(row.model_dump_json() + "\n" for row in rows))


def write_text(path: Path, text: str) -> None:
    """Write a text file under a temporary name, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def file_sha256(path: Path) -> str:
    """The hash of a file. Raises `DataError` when it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as exc:
        raise DataError(f"cannot read {path}: {exc}") from exc
    return digest.hexdigest()


def text_sha256(*parts: str) -> str:
    """One hash over several texts, each with its length, so that no two lists of texts share it by being
    joined."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(f"{len(data)}:".encode() + data)
    return digest.hexdigest()
