"""JSON lines on disk: read plain or gzipped, write whole files under a temporary name, hash them."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from agent.items import JsonObject
from streams.codec import first_error
from streams.errors import StreamsError

Row = TypeVar("Row", bound=BaseModel)


class DataError(StreamsError):
    """A data file cannot be used; the message names the file, the line and what to write instead."""


def read_objects(path: Path) -> Iterator[JsonObject]:
    """The objects of a `.jsonl` or `.jsonl.gz` file, in order; blank lines are left out. Raises
    `DataError`."""
    return (value for _, value in _numbered(path))


def _numbered(path: Path) -> Iterator[tuple[int, JsonObject]]:
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8")
            if path.suffix == ".gz"
            else path.open(encoding="utf-8") as file
        ):
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, _object(line, path, number)
    except (OSError, UnicodeDecodeError) as exc:
        raise DataError(f"cannot read {path}: {exc}") from exc


def _object(line: str, path: Path, number: int) -> JsonObject:
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
    for number, value in _numbered(path):
        try:
            rows.append(kind.model_validate(value))
        except ValidationError as exc:
            raise DataError(f"{path}, line {number}: {first_error(exc)}") from exc
    return rows


def write_rows(path: Path, rows: Iterable[BaseModel]) -> None:
    """Write rows under a temporary name, then rename: a reader sees all of them or none. Equal rows give
    equal bytes."""
    write_text(path, "".join(row.model_dump_json() + "\n" for row in rows))


def write_json(path: Path, value: Mapping[str, object]) -> None:
    """Write an object as JSON, sorted by key; all of it or nothing."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def read_json(path: Path) -> JsonObject | None:
    """The object in a JSON file, or None when there is no such file or it is not whole."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def write_text(path: Path, text: str) -> None:
    """Write a text file, all of it or nothing."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write under a temporary name, sync, rename: a reader, and whoever comes after a crash, sees the old
    file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def file_sha256(path: Path) -> str:
    """The hash of a file. Raises `DataError` when it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as exc:
        raise DataError(f"cannot read {path}: {exc}") from exc


def files_sha256(root: Path, names: Iterable[str]) -> str:
    """One hash over several files of a directory: their names, sizes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(names):
        path = root / name
        digest.update(f"{name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def text_sha256(*parts: str) -> str:
    """One hash over several texts, each with its length, so that no two lists of texts share it by being
    joined."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(f"{len(data)}:".encode() + data)
    return digest.hexdigest()
