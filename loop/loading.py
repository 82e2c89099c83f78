"""Loading: one frozen object from a TOML file with environment variables on top, read once at the edge.

1. The file, then `SKILLLOOP_<SECTION>__<KEY>=value`, or `SKILLLOOP_<KEY>` outside of sections (read as TOML
   where it parses as TOML, else as text), then what the command line says; the later one wins key by key.
2. `plugins` are imported before anything is checked, so that the kinds they add exist.
3. An unknown key is an error that names the nearest right one, or where an old key went. What is wrong is
   blamed on the file or on the environment variable that says it.
4. Relative paths in a file start at its folder, those of the environment at the current one.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import sys
import tomllib
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from pydantic import BaseModel, ConfigDict, PrivateAttr, SecretStr, ValidationError

from agent.items import JsonObject
from agent.settings import Settings
from agent.table import Table, UnknownKind
from loop.errors import LoopError
from loop.shipped import CONFIGS as CONFIGS

PREFIX = "SKILLLOOP_"
NO_KEYS = frozenset({"config", "dir", "image", "log_level", "crash_at"})
"""Names behind the prefix that are no keys: command line, compose.yaml and the crash test read them."""

P = ParamSpec("P")
T = TypeVar("T")
S = TypeVar("S", bound=Settings)
Tree = JsonObject
Keys = tuple[str, ...]


class ConfigError(LoopError):
    """A configuration that cannot be used; the message names the file, the key and what to write instead."""


class KindSection(Settings):
    """A choice by `kind`. Each kind has its own settings in a table of its name; those of a kind that a
    plugin added are its `options`, which the plugin checks."""

    model_config = ConfigDict(extra="allow")

    kind: str
    _where: str = PrivateAttr("kind")

    @property
    def where(self) -> str:
        """Who chose the kind, for messages: the file or the variable, and the key."""
        return self._where

    @property
    def options(self) -> JsonObject:
        """What stands in the table of the chosen kind. Raises `ConfigError` where it is not a table."""
        own = getattr(self, self.kind, None)
        if isinstance(own, BaseModel):
            return own.model_dump()
        if own is not None and not isinstance(own, Mapping):
            raise ConfigError(f"{self.where}: the settings of {self.kind!r} must be a table (got {own!r})")
        return dict(own or {})

    def chosen_by(self, where: str) -> None:
        """Remember who chose the kind."""
        self._where = where

    def chosen(self) -> JsonObject:
        """The section as it has effect, flat: what all kinds have in common, and the options of this one."""
        common = {
            name: getattr(self, name)
            for name in type(self).model_fields
            if not isinstance(getattr(self, name), BaseModel)
        }
        return common | dict(self.options)


def open_kind(table: Table[Callable[P, T]], section: KindSection, *args: P.args, **kwargs: P.kwargs) -> T:
    """What the chosen row of a table opens. Raises `ConfigError` for an unknown kind, for options that the
    row refuses, and for a library that is not installed."""
    name = f"{table.noun} {section.kind!r}"
    try:
        return table.choose(section.kind)(*args, **kwargs)
    except UnknownKind as exc:
        raise ConfigError(f"{section.where}: {exc}") from exc
    except ValidationError as exc:
        first = exc.errors()[0]
        raise ConfigError(f"{name}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from exc
    except ModuleNotFoundError as exc:
        raise ConfigError(
            f"{name} needs {exc.name}, which is not installed; the extras kafka, llm and postgres bring what "
            "these need (`pip install '<the wheel>[kafka,llm,postgres]'`)"
        ) from exc


def load_settings(
    model: type[S],
    path: Path | None,
    environ: Mapping[str, str],
    overrides: Mapping[str, object],
    moved: Mapping[str, str],
) -> S:
    """The settings in `path` (None: all defaults), then `environ`, then `overrides` ({"section": {"key":
    value}}). `moved` says what became of keys of earlier versions. Raises `ConfigError`.
    """
    layers = (_read(path), from_environment(environ, model), dict(overrides))
    tree: Tree = {}
    for layer in layers:
        merge(tree, layer)
    folder = Path() if path is None else path.resolve().parent
    sources = _Sources("the defaults" if path is None else str(path), layers)
    named = tree.get("plugins")
    start = folder if sources.in_file(("plugins",)) else Path.cwd()
    load_plugins([start / str(name) for name in named] if isinstance(named, list) else [])
    for keys, message in _unknown(tree, model, (), moved):
        raise ConfigError(f"{sources.of(keys)}: {message}")
    try:
        settings = model.model_validate(tree)
    except ValidationError as exc:
        first = exc.errors()[0]
        keys = tuple(str(part) for part in first["loc"])
        # A secret is not shown, nor a whole section: it may hold one.
        secret = any(_is_secret(_wanted(model, keys[:end])) for end in range(1, len(keys) + 1))
        hidden = secret or isinstance(first["input"], Mapping | BaseModel)
        got = "" if hidden else f" (got {first['input']!r})"
        message = f"{'.'.join(keys)}: {first['msg'].removeprefix('Value error, ')}{got}"
        raise ConfigError(f"{sources.of(keys)}: {message}") from exc
    placed: S = from_folder(settings, lambda keys: folder if sources.in_file(keys) else Path.cwd())
    for name in model.model_fields:
        if isinstance(section := getattr(placed, name), KindSection):
            section.chosen_by(f"{sources.of((name, 'kind'))}: {name}.kind")
    return placed


def _read(path: Path | None) -> Tree:
    if path is None:
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise ConfigError(f"no configuration file {path}; examples are in {CONFIGS}") from exc
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise ConfigError(f"cannot read {path}: {exc}; examples are in {CONFIGS}") from exc


class _Sources:
    """Who said what: the file, the environment or the command line."""

    def __init__(self, file: str, layers: Sequence[Tree]) -> None:
        self._file, self._layers = file, layers

    def _layer(self, keys: Keys) -> tuple[int, int]:
        return max((_depth(tree, keys), layer) for layer, tree in enumerate(self._layers))

    def in_file(self, keys: Keys) -> bool:
        """Whether the value at `keys` is the file's."""
        return self._layer(keys)[1] == 0

    def of(self, keys: Keys) -> str:
        """The source of the value at `keys`, or of the deepest part of it that anybody gave; a later one
        wins."""
        depth, layer = self._layer(keys)
        if depth == 0 or layer == 0:
            return self._file
        if layer == 2:
            return "the command line"
        name = PREFIX + "__".join(keys[:depth]).upper()
        whole = isinstance(_at(self._layers[1], keys[:depth]), Mapping)
        if whole and _depth(self._layers[0], keys) == depth:
            return f"{self._file}, with {name}__* on top"
        return f"environment variable {name}{'__*' if whole else ''}"


def _at(tree: Any, keys: Keys) -> Any:
    for key in keys:
        tree = tree[key]
    return tree


def _depth(tree: object, keys: Keys) -> int:
    """How many of `keys` lead into a tree."""
    for depth, key in enumerate(keys):
        if not isinstance(tree, Mapping) or key not in tree:
            return depth
        tree = tree[key]
    return len(keys)


def from_environment(environ: Mapping[str, str], model: type[BaseModel]) -> Tree:
    """The tree of the `SKILLLOOP_*` variables of a model. Raises `ConfigError` when two contradict."""
    tree: Tree = {}
    for name, text in sorted(environ.items()):
        *sections, key = name.removeprefix(PREFIX).lower().split("__")
        if not name.startswith(PREFIX) or (not sections and key in NO_KEYS):
            continue
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise ConfigError(f"environment variable {name}: another one gives {section!r} as a whole")
        place[key] = _value(text, _wanted(model, (*sections, key)))
    return tree


def _value(text: str, wanted: object) -> object:
    """A variable's value: TOML where it parses, but a text that is wanted stays one, a number too (secrets
    are texts or lists of texts)."""
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    if isinstance(value, list) and typing.get_origin(wanted) is tuple:
        return value
    return text if (wanted is str or _is_secret(wanted)) and not isinstance(value, str) else value


def _is_secret(annotation: object) -> bool:
    return annotation is SecretStr or SecretStr in typing.get_args(annotation)


def _wanted(model: type[BaseModel] | None, keys: Sequence[str]) -> object:
    """The type of the field that `keys` lead to; None where there is none."""
    for key in keys[:-1]:
        field = model.model_fields.get(key) if model else None
        model = settings_in(field.annotation) if field else None
    leaf = model.model_fields.get(keys[-1]) if model else None
    return leaf.annotation if leaf else None


def merge(tree: Tree, more: Mapping[str, object]) -> None:
    """Put `more` on top of `tree`, key by key."""
    for key, value in more.items():
        if isinstance(value, Mapping):
            if not isinstance(tree.get(key), dict):
                tree[key] = {}
            merge(tree[key], value)
        else:
            tree[key] = value


def from_folder(value: Any, folder: Callable[[Keys], Path], keys: Keys = ()) -> Any:
    """The same settings with every relative path taken from the folder of its keys."""
    if isinstance(value, Path):
        return folder(keys) / value
    if isinstance(value, tuple):
        return tuple(from_folder(item, folder, keys) for item in value)
    if isinstance(value, BaseModel):
        names = type(value).model_fields
        return value.model_copy(
            update={name: from_folder(getattr(value, name), folder, (*keys, name)) for name in names}
        )
    return value


def load_plugins(files: Sequence[Path]) -> None:
    """Import Python files that add rows to tables (docs/extending.md), each once in a process. Raises
    `ConfigError`."""
    for file in files:
        name = f"skillloop_plugin_{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:12]}"
        spec = importlib.util.spec_from_file_location(name, file)
        if name in sys.modules:
            continue
        if not file.is_file() or spec is None or spec.loader is None:
            raise ConfigError(f"plugins: {file} is not a Python file")
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as exc:  # an exit would end the command as if it had done its work
            del sys.modules[name]
            raise ConfigError(f"plugins: {file}: {type(exc).__name__}: {exc}") from exc


def _unknown(
    tree: Mapping[str, object], model: type[BaseModel], path: Keys, moved: Mapping[str, str]
) -> Iterator[tuple[Keys, str]]:
    """Keys that `model` does not have, each with what to write."""
    fields = model.model_fields
    plugin = tree.get("kind") if issubclass(model, KindSection) else None
    for key, value in tree.items():
        name = ".".join((*path, key))
        if key in fields:
            inner = settings_in(fields[key].annotation)
            if inner is not None and isinstance(value, Mapping):
                yield from _unknown(value, inner, (*path, key), moved)
        elif name in moved:
            yield (*path, key), f"{name} {moved[name]}"
        elif key != plugin:
            yield (*path, key), f"unknown key {name!r}; {_suggest(key, fields)}"


def settings_in(annotation: object) -> type[BaseModel] | None:
    """The settings that a field holds, also where it may be None."""
    for kind in (annotation, *typing.get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def _suggest(key: str, fields: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(key, fields, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(sorted(fields))}"
