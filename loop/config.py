"""Configuration: one frozen object, from a TOML file with environment variables on top, read once at the
edge.

Relative paths start at the file's folder.

`SKILLLOOP_<SECTION>__<KEY>=value` overrides one key (`SKILLLOOP_STORE__URL=postgresql+psycopg://...`). Values
are read as TOML where they parse as TOML, else as text. An unknown key is an error that names the nearest
right one.
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, TypeAdapter, ValidationError, model_validator

from agent.budget import Caps
from agent.decision import PolicySettings
from agent.drift import DriftSettings
from agent.plan import StrategyName, StrategySettings
from agent.posterior import ReadSettings
from agent.replay import ReplaySettings
from graphs.chat.settings import ChatSettings
from graphs.curate.settings import DuplicateSettings, EmbedSettings
from graphs.filters.chain import FilterSettings
from loop.errors import LoopError
from streams.kafka.settings import KafkaSettings
from training.gate import GateSettings
from training.settings import SftSettings

PREFIX = "SKILLLOOP_"
CONFIGS = Path(__file__).parent.parent / "configs"


class ConfigError(LoopError):
    """A configuration that cannot be used; the message names the file, the key and what to write instead."""


class Section(BaseModel):
    """Base of the sections: immutable, unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class TaskSection(Section):
    """What the student is for: the demo's world, or `files` of questions as `skillloop stat` reads and writes
    them (docs/online.md).

    `catalog`: its catalog.jsonl. `pool`: questions with solutions that may be trained on. `held_out`:
    questions with answers for the gate, never trained on. `labels`: its labels.jsonl, for questions that name
    no skills themselves. `grade`: how answers are compared.
    """

    kind: Literal["demo", "files"] = "demo"
    catalog: Path | None = None
    pool: Path | None = None
    held_out: tuple[Path, ...] = ()
    labels: tuple[Path, ...] = ()
    grade: Literal["math", "text"] = "math"

    @model_validator(mode="after")
    def _files_named(self) -> TaskSection:
        missing = [name for name in ("catalog", "pool", "held_out") if not getattr(self, name)]
        if self.kind == "files" and missing:
            raise ValueError(f"kind = 'files' needs {' and '.join(missing)}")
        return self


class StudentSection(Section):
    """Which student. `base` is a directory in Hugging Face format, a hub name, or `builtin:llama` /
    `builtin:qwen` (the demo's)."""

    name: str = Field(default="demo", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    base: str = "builtin:llama"
    max_new_tokens: int = Field(default=112, gt=0)
    batch_size: int = Field(default=256, gt=0)


class LogSection(Section):
    """The event log: `local` is a SQLite file in the run's directory, `kafka` a cluster."""

    kind: Literal["local", "kafka"] = "local"
    kafka: KafkaSettings = KafkaSettings()


class StoreSection(Section):
    """The state store. An empty `url` means a SQLite file in the run's directory."""

    url: SecretStr = SecretStr("")


class MlflowSection(Section):
    """Tracking and registry. An empty `tracking_uri` means a SQLite file `mlflow.db` in the run's
    directory."""

    tracking_uri: str = ""


class TeacherSection(Section):
    """The teacher: `symbolic` for the demo's world, or `chat`: any OpenAI-compatible server, set up in
    `[teacher.chat]`.

    The rates make the symbolic one as fallible as a real one: the paper's agrees with itself 70 % of the
    time.
    """

    kind: Literal["symbolic", "chat"] = "symbolic"
    chat: ChatSettings | None = None
    error_rate: float = Field(default=0.0, ge=0, le=1)
    abstain_rate: float = Field(default=0.0, ge=0, le=1)
    solve_error_rate: float = Field(default=0.05, ge=0, le=1)


class MonitorSection(Section, FilterSettings):
    """How outputs are consumed. `bucket_s` is the width of an event-time bucket in seconds; it is part of the
    stored profile.

    `source`: `outputs` are diagnosed here; `diagnoses` of a teacher outside this program are only folded into
    the profile. Never run both on one student: each answer would count twice. `filters`: who decides whether
    an answer is right, in order of trust: `gold` (the event's gold answer), `feedback`, `consistency`
    (`samples` answers of the student, drawn at `temperature`), `prm`, `teacher`, and `a&b` for two that must
    agree. Their settings are those of graphs/filters/chain.py.
    """

    source: Literal["outputs", "diagnoses"] = "outputs"
    bucket_s: int = Field(default=60, gt=0)
    max_records: int = Field(default=256, gt=0)
    max_attempts: int = Field(default=3, gt=0)
    backoff_s: float = Field(default=0.5, gt=0)
    future_tolerance_s: float = Field(default=300.0, ge=0)
    filters: tuple[str, ...] = ("feedback", "teacher")
    samples: int = Field(default=5, gt=1)
    temperature: float = Field(default=0.7, gt=0)


class CurateSection(Section):
    """How a round's data is made. `strategy` is `policy`, so many examples of each skill that the policy
    names, or one of agent/strategies.py, which plans from the champion's newest failures at these skills and
    makes as many examples in all. Its parameters are in `[strategy]`.

    At most `failures` difficult questions are planned from, sought in the newest `recent_records` of each
    partition of the log. Old data is replayed where the champion answers it right; `replay_candidates` pool
    items are tried for that.
    """

    strategy: Literal["policy"] | StrategyName = "policy"
    failures: int = Field(default=500, gt=0)
    recent_records: int = Field(default=20_000, gt=0)
    replay: ReplaySettings = ReplaySettings()
    replay_candidates: int = Field(default=2000, ge=0)


class DemoSection(Section):
    """The demo's stream: `questions` in all, `tick` at a time; the mixture shifts at questions `first_shift`
    and `second_shift`."""

    questions: int = Field(default=2800, gt=0)
    tick: int = Field(default=100, gt=0)
    first_shift: int = Field(default=500, gt=0)
    second_shift: int = Field(default=1700, gt=0)
    seconds_between: float = Field(default=1.0, gt=0)
    gate_steady: int = Field(default=100, gt=0)
    gate_wavering: int = Field(default=240, gt=0)
    stubborn_items: int = Field(default=400, gt=0)
    gate_mix: int = Field(default=150, gt=0)
    gate_ood: int = Field(default=60, gt=0)
    exam_per_skill: int = Field(default=100, gt=0)
    exam_mix: int = Field(default=200, gt=0)
    exam_ood: int = Field(default=120, gt=0)
    rich_pool: int = Field(default=300, gt=0)
    poor_pool: int = Field(default=80, gt=0)
    common_pool: int = Field(default=110, gt=0)


class Config(Section):
    """Everything. Sections that are not given have their defaults."""

    seed: int = Field(default=0, ge=0)
    student: StudentSection = StudentSection()
    task: TaskSection = TaskSection()
    log: LogSection = LogSection()
    store: StoreSection = StoreSection()
    mlflow: MlflowSection = MlflowSection()
    teacher: TeacherSection = TeacherSection()
    monitor: MonitorSection = MonitorSection()
    profile: ReadSettings = ReadSettings()
    drift: DriftSettings = DriftSettings()
    policy: PolicySettings = PolicySettings()
    budget: Caps = Caps()
    curate: CurateSection = CurateSection()
    strategy: StrategySettings = StrategySettings()
    duplicates: DuplicateSettings = DuplicateSettings()
    embed: EmbedSettings = EmbedSettings()
    train: SftSettings = SftSettings(steps=240)
    gate: GateSettings = GateSettings()
    demo: DemoSection = DemoSection()


def load(
    path: Path | None, environ: Mapping[str, str] | None = None, overrides: Mapping[str, Any] | None = None
) -> Config:
    """The configuration in `path` (None: all defaults), then `environ`, then `overrides` ({"section": {"key":
    value}}).

    Raises `ConfigError` with the file, the key and the nearest right name.
    """
    tree: dict[str, Any] = {}
    if path is not None:
        try:
            tree = tomllib.loads(path.read_text())
        except FileNotFoundError as exc:
            raise ConfigError(f"no configuration file {path}; the shipped ones are in {CONFIGS}") from exc
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
            raise ConfigError(f"cannot read {path}: {exc}") from exc
    merge(tree, from_environment(environ or {}))
    merge(tree, overrides or {})
    source = str(path) if path else "the defaults"
    check_keys(tree, Config, (), source)
    try:
        config: Config = TypeAdapter(Config).validate_python(tree)
        return config if path is None else from_folder(config, path.resolve().parent)
    except ValidationError as exc:
        first = exc.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{source}: {key}: {first['msg']} (got {first.get('input')!r})") from exc


def from_folder(value: Any, folder: Path) -> Any:
    """The same configuration with every relative path taken from `folder`, where its file lies."""
    if isinstance(value, Path):
        return value if value.is_absolute() else folder / value
    if isinstance(value, tuple):
        return tuple(from_folder(one, folder) for one in value)
    if isinstance(value, BaseModel):
        return value.model_copy(
            update={name: from_folder(getattr(value, name), folder) for name in type(value).model_fields}
        )
    return value


def from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """The tree of the `SKILLLOOP_<SECTION>__<KEY>` variables."""
    tree: dict[str, Any] = {}
    for name, text in sorted(environ.items()):
        *sections, key = name.removeprefix(PREFIX).lower().split("__")
        if not name.startswith(PREFIX) or not sections:
            continue
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
        place[key] = _toml_value(text)
    return tree


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def merge(tree: dict[str, Any], more: Mapping[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, Mapping):
            merge(tree.setdefault(key, {}), value)
        else:
            tree[key] = value


def _fields(kind: Any) -> dict[str, Any] | None:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return {name: info.annotation for name, info in kind.model_fields.items()}
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return typing.get_type_hints(kind)
    return None


def check_keys(tree: Mapping[str, Any], kind: Any, path: tuple[str, ...], source: str) -> None:
    fields = _fields(kind)
    if fields is None:
        return
    for key, value in tree.items():
        if key not in fields:
            raise ConfigError(f"{source}: unknown key {'.'.join((*path, key))!r}; {_suggest(key, fields)}")
        if isinstance(value, Mapping):
            check_keys(value, fields[key], (*path, key), source)


def _suggest(key: str, fields: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(key, fields, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(sorted(fields))}"
