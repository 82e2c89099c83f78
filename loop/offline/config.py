"""The configuration of `skillloop stat`: one frozen object from a TOML file, with the environment on top
(`configs/stat/`)."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from agent.plan import StrategyName, StrategySettings
from graphs.chat.settings import ChatSettings
from graphs.curate.settings import DuplicateSettings, EmbedSettings
from graphs.filters.chain import FilterSettings
from loop.config import ConfigError, Section, check_keys, from_environment, from_folder, merge
from training.settings import SftSettings


class DataSection(Section):
    """The files. Relative paths start at the configuration's folder. `held_out` sets are kept out of training
    and measure."""

    train: Path
    validation: Path | None = None
    validation_questions: int = Field(default=500, gt=0)
    held_out: tuple[Path, ...] = ()


class CatalogSection(Section):
    """Where the skills come from: the labels in the data, a file of `catalog` rows, or the teacher (paper
    section 3.1)."""

    source: Literal["given", "file", "teacher"] = "given"
    file: Path | None = None
    skills_per_subject: int = Field(default=20, gt=0)
    labels: Literal["given", "missing", "teacher"] = "missing"
    """Who labels questions: only the data, the teacher where the data has no label, or the teacher always."""


class StudentSection(Section):
    """The student: a folder in Hugging Face format. Answers as in the paper: no examples, temperature 0.1,
    one response."""

    base: Path | None = None
    batch_size: int = Field(default=16, gt=0)
    max_new_tokens: int = Field(default=1024, gt=0)
    temperature: float = Field(default=0.1, ge=0)
    samples: int = Field(default=1, gt=0)


class FilterSection(Section, FilterSettings):
    """Which answers are difficult: the first filter in `order` with an opinion decides (paper section 3.2).
    Filters are `gold`, `consistency`, `prm`, `teacher`, and `a&b` for two that must agree
    (graphs/filters/chain.py, with their settings).

    `grade`: how final answers are compared. `diagnosed_samples`: answers per question that are judged, the
    others only vote in `consistency`.
    """

    order: tuple[str, ...] = ("gold", "teacher")
    grade: Literal["math", "text"] = "math"
    diagnosed_samples: int = Field(default=1, gt=0)


class TeacherSection(Section):
    """Who teaches. `scripted` is the fake of `loop/offline/scripted.py` with the replies of the file
    `script`; `chat` any OpenAI-compatible server, set up in `[teacher.chat]` (graphs/chat/settings.py), with
    its price or the word that it is free.
    """

    kind: Literal["scripted", "chat"] = "scripted"
    script: Path | None = None
    chat: ChatSettings | None = None


class BudgetSection(Section):
    """`cap_usd` stops before the call that would pass it. The others are what an estimate assumes where
    nothing is known yet."""

    cap_usd: float | None = Field(default=None, ge=0)
    difficult_share: float = Field(default=0.5, ge=0, le=1)
    missing_per_answer: float = Field(default=2.5, gt=0)
    chars_per_token: float = Field(default=3.5, gt=0)
    prompt_overhead_tokens: int = Field(default=400, ge=0)
    label_tokens: int = Field(default=60, gt=0)
    diagnose_tokens: int = Field(default=250, gt=0)
    question_tokens: int = Field(default=150, gt=0)
    solution_tokens: int = Field(default=500, gt=0)


class StrategySection(StrategySettings):
    """Which strategy, and the paper's parameters (agent/plan.py)."""

    name: StrategyName = "stat-sel"


class TrainSection(Section):
    """The LoRA round (paper section 4): 3 epochs, batches of 8; `sft.steps` is computed from them.
    `max_steps` shortens it."""

    epochs: float = Field(default=3.0, gt=0)
    max_steps: int | None = Field(default=None, gt=0)
    sft: SftSettings = SftSettings(
        steps=1, batch_size=8, micro_batch_size=1, lora_dropout=0.05, max_grad_norm=0.3, weight_decay=0.1
    )


class EvaluateSection(Section):
    """At most `items` questions of each held-out set, before and after."""

    items: int | None = Field(default=500, gt=0)
    temperature: float = Field(default=0.0, ge=0)


class StatConfig(Section):
    """Everything. `answers` is a file of the student's answers; without it the student of `[student]`
    answers."""

    seed: int = Field(default=0, ge=0)
    answers: Path | None = None
    data: DataSection
    catalog: CatalogSection = CatalogSection()
    student: StudentSection = StudentSection()
    filters: FilterSection = FilterSection()
    teacher: TeacherSection = TeacherSection()
    budget: BudgetSection = BudgetSection()
    strategy: StrategySection = StrategySection()
    duplicates: DuplicateSettings = DuplicateSettings()
    embed: EmbedSettings = EmbedSettings()
    train: TrainSection = TrainSection()
    evaluate: EvaluateSection = EvaluateSection()


def load_stat(
    path: Path, environ: Mapping[str, str] | None = None, overrides: Mapping[str, Any] | None = None
) -> StatConfig:
    """The configuration in `path`, then `environ` (`SKILLLOOP_<SECTION>__<KEY>`), then `overrides`.

    Raises `ConfigError` with the file, the key and the nearest right name.
    """
    try:
        tree = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise ConfigError(f"cannot read {path}: {exc}; examples are in configs/stat/") from exc
    merge(tree, from_environment(environ or {}))
    merge(tree, overrides or {})
    check_keys(tree, StatConfig, (), str(path))
    try:
        config = StatConfig.model_validate(tree)
    except ValidationError as exc:
        first = exc.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{path}: {key}: {first['msg']} (got {first.get('input')!r})") from exc
    _check_needs(config, path)
    located: StatConfig = from_folder(config, path.resolve().parent)
    return located


def _check_needs(config: StatConfig, path: Path) -> None:
    needs = {
        "catalog.file": config.catalog.source == "file" and config.catalog.file is None,
        "filters.prm": any("prm" in name for name in config.filters.order) and config.filters.prm is None,
        "teacher.chat": config.teacher.kind == "chat" and config.teacher.chat is None,
        "filters.order": not config.filters.order,
        "embed.model": config.embed.kind == "sentence-transformers" and not config.embed.model,
    }
    missing = [key for key, lacks in needs.items() if lacks]
    if missing:
        raise ConfigError(f"{path}: {missing[0]} is needed by the other settings of its section; set it")
