"""docs/configuration.md, written from the models of the configurations: `make config-docs` (a test keeps it
current)."""

from __future__ import annotations

import argparse
import inspect
import json
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from loop.config import Config
from loop.loading import settings_in
from loop.offline.config import StatConfig
from loop.shipped import ROOT
from streams.files import write_text

INTRODUCTION = """# Configuration

Every key, with its default, bounds and unit, written from the program's models by
`python -m loop.reference`. A file is TOML; `skillloop init FOLDER --template demo|online|offline|compose`
writes a commented one. Any key also comes from the environment, as `SKILLLOOP_<SECTION>__<KEY>`
(`SKILLLOOP_TEACHER__CHAT__API_KEY`), which is read after the file. Relative paths in a file start at its
folder, those of the environment at the current one. An unknown key is an error that names the nearest right
one, or where a key of earlier versions went.

`SKILLLOOP_CONFIG` and `SKILLLOOP_DIR` stand for `--config` and `--dir`, `SKILLLOOP_LOG_LEVEL` for how much is
logged (`WARNING`). `skillloop stat` leaves variables of keys that only the loop has alone, so that both
run in one environment.

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
    "_seconds_per_day": "seconds",
}  # fmt: skip
"""What the names of keys say of their unit: beginnings and ends of names."""
TYPES = {Path: "path", SecretStr: "secret", str: "text", int: "integer", float: "number", bool: "true/false"}
Told = dict[str, tuple[type[BaseModel], BaseModel | None]]
"""The sections that the page has: path -> model, and the values by default."""
BOUNDS = {Gt: ("> ", "gt"), Ge: (">= ", "ge"), Lt: ("< ", "lt"), Le: ("<= ", "le")}


def document() -> str:
    """The whole page."""
    told: Told = {}
    parts = [INTRODUCTION, "## The loop: `skillloop.toml`\n", *_sections(Config, "", told)]
    parts += ["## The offline method: `stat.toml`\n", *_sections(StatConfig, "", told)]
    return "\n".join(parts).rstrip() + "\n"


def _sections(
    model: type[BaseModel], path: str, told: Told, standing: BaseModel | None = None
) -> Iterator[str]:
    """A section's own keys as a table, then its sections. `standing` is the section as its owner has it by
    default; one that was `told` as it is, is not told again."""
    yield f"### `[{path}]`\n" if path else "### Before the first section\n"
    if path and told.get(path) == (model, standing):
        yield "As in the loop's file.\n"
        return
    told[path] = (model, standing)
    yield inspect.cleandoc(model.__doc__ or "").split("\n\nExamples\n")[0].split("\n\n>>>")[0] + "\n"
    rows, inner = [], []
    for name, field in model.model_fields.items():
        default = getattr(standing, name) if standing else field.get_default(call_default_factory=True)
        section = settings_in(field.annotation)
        if section is None:
            rows.append(_row(name, field, default))
        else:
            own = default if isinstance(default, BaseModel) else None
            inner.append((f"{path}.{name}".strip("."), section, own))
    if rows:
        yield "\n".join(["| key | type | default | bounds | unit |", "|---|---|---|---|---|", *rows, ""])
    for where, section, own in inner:
        yield from _sections(section, where, told, own)


def _row(name: str, field: FieldInfo, default: object) -> str:
    cells = (f"`{name}`", _type(field.annotation), _default(default), _bounds(field), _unit(name))
    return f"| {' | '.join(cells)} |"


def _type(annotation: object) -> str:
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type(inner[0])
    if origin is typing.Literal:
        return " or ".join(f"`{choice}`" for choice in inner)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type(kind) for kind in inner if kind is not type(None)))
    if origin is tuple:
        return f"list of {_type(inner[0])}"
    return next((name for kind, name in TYPES.items() if kind is annotation), str(annotation))


def _default(value: object) -> str:
    if value is PydanticUndefined:
        return "**required**"
    if value is None:
        return "none"
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if isinstance(value, tuple):
        return f"`[{', '.join(json.dumps(item) for item in value)}]`"
    return f"`{json.dumps(value)}`"


def _bounds(field: FieldInfo) -> str:
    told = []
    for bound in field.metadata:
        if type(bound) in BOUNDS:
            sign, name = BOUNDS[type(bound)]
            told.append(f"{sign}{getattr(bound, name):g}")
        elif isinstance(bound, MinLen):
            told.append(f"at least {bound.min_length} long")
        elif getattr(bound, "pattern", None):
            told.append(f"matches `{bound.pattern}`")
    return ", ".join(told)


def _unit(name: str) -> str:
    for part, unit in UNITS.items():
        if name.startswith(part) if part.endswith("_") else name.endswith(part):
            return unit
    return ""


def main() -> None:
    """Write the page, or print it where there is no checkout."""
    about = "Write docs/configuration.md from the program's models; outside of a checkout, print it."
    argparse.ArgumentParser(prog="python -m loop.reference", description=about).parse_args()
    if (ROOT / "pyproject.toml").is_file():
        write_text(ROOT / "docs" / "configuration.md", document())
    else:
        sys.stdout.write(document())


if __name__ == "__main__":
    main()
