"""docs/configuration.md, written from the models of the configurations: `make config-docs` (a test keeps it
current)."""

from __future__ import annotations

import inspect
import re
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from loop.config import Config
from loop.loading import settings_in
from loop.offline.config import StatConfig
from loop.shipped import ROOT
from streams.files import write_text

INTRODUCTION = """# Configuration

Every key, with its default, bounds and unit, written from the program's models by `make config-docs`. A file
is TOML; `skillloop init FOLDER --template demo|online|offline|compose` writes a commented one. Any key also
comes from the environment, as `SKILLLOOP_<SECTION>__<KEY>` (`SKILLLOOP_TEACHER__CHAT__API_KEY`), which is read
after the file. Relative paths in a file start at its folder, those of the environment at the current one. An
unknown key is an error that names the nearest right one, or where a key of earlier versions went.

`SKILLLOOP_CONFIG` and `SKILLLOOP_DIR` stand for `--config` and `--dir`, `SKILLLOOP_LOG_LEVEL` for how much is
logged (`WARNING`).

Both commands' files have the same sections where they mean the same: `[engine]`, `[teacher]`, `[train]`,
`[strategy]`, `[duplicates]`, `[embed]`, and of `[budget]` the cap per round. What differs by nature: the loop
is told of questions by `[task]` and judges answers by `[monitor]`; `skillloop stat` reads `[data]` and judges
by `[filters]`.
"""
UNITS: Mapping[str, str] = {
    "_s": "seconds", "_ms": "milliseconds", "_bytes": "bytes", "_tokens": "tokens", "_chars": "characters",
    "_answers": "answers", "_steps": "optimizer steps", "_buckets": "buckets", "usd_": "US dollars",
    "_usd": "US dollars", "_per_mtok": "US dollars per million tokens", "_share": "share, 0 to 1",
    "_rate": "share, 0 to 1", "_seconds": "seconds", "_per_minute": "per minute",
}  # fmt: skip
"""What the names of keys say of their unit: beginnings and ends of names."""
BOUNDS = {Gt: ("> ", "gt"), Ge: (">= ", "ge"), Lt: ("< ", "lt"), Le: ("<= ", "le")}


def document() -> str:
    """The whole page."""
    parts = [INTRODUCTION, "## The loop: `skillloop.toml`\n", *_tables(Config)]
    parts += ["## The offline method: `stat.toml`\n", *_tables(StatConfig)]
    return "\n".join(parts)


def _tables(model: type[BaseModel], path: str = "") -> Iterator[str]:
    """The table of a section's own keys, then those of its sections."""
    inner = {name: settings_in(field.annotation) for name, field in model.model_fields.items()}
    yield _heading(model, path)
    rows = [_row(name, field) for name, field in model.model_fields.items() if inner[name] is None]
    if rows:
        yield "\n".join(["| key | type | default | bounds | unit |", "|---|---|---|---|---|", *rows, ""])
    for name, section in inner.items():
        if section is not None:
            yield from _tables(_with_defaults(model.model_fields[name], section), f"{path}.{name}".strip("."))
