"""The configuration of `skillloop stat`: one frozen object (how it is read: loop/loading.py); examples in
`configs/stat/`. Sections that mean the same as the loop's are the loop's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from agent.plan import StrategySettings
from agent.settings import Settings
from agent.strategies import STRATEGIES
from graphs.curate.settings import DuplicateSettings, EmbedSettings
from graphs.filters.chain import FilterSettings
from loop.config import Base, EngineSection, TeacherSection, TrainSection
from loop.loading import PREFIX, load_settings
from loop.moved import MOVED
from serving.settings import EngineSettings
from training.settings import SftSettings


def _known(name: str) -> str:
    STRATEGIES.choose(name)
    return name


Strategy = Annotated[str, AfterValidator(_known)]
"""The name of a strategy in the table `agent.strategies.STRATEGIES`."""


class DataSection(Settings):
    """The files. Relative paths start at the configuration's folder. `held_out` sets are kept out of training
    and measure."""

    train: Path
    validation: Path | None = None
    validation_questions: int = Field(default=500, gt=0)
    held_out: tuple[Path, ...] = ()


class CatalogSection(Settings):
    """Where the skills come from: the labels in the data, a file of `catalog` rows, or the teacher (paper
    section 3.1)."""

    source: Literal["given", "file", "teacher"] = "given"
    file: Path | None = None
    skills_per_subject: int = Field(default=20, gt=0)
    labels: Literal["given", "missing", "teacher"] = "missing"
    """Who labels questions: only the data, the teacher where the data has no label, or the teacher always."""

    @model_validator(mode="after")
    def _file_named(self) -> Self:
        if self.source == "file" and self.file is None:
            raise ValueError("catalog.file is needed by source = 'file'")
        return self


class StudentSection(Settings):
    """The student; none is needed where its answers are in a file. Answers as in the paper: no examples,
    temperature 0.1, one response."""

    base: Base | None = None
    max_new_tokens: int = Field(default=1024, gt=0)
    temperature: float = Field(default=0.1, ge=0)
    samples: int = Field(default=1, gt=0)


class FilterSection(FilterSettings):
    """Which answers are difficult: the first filter in `order` with an opinion decides (paper section 3.2).
    Filters are `gold`, `consistency`, `prm`, `teacher`, and `a&b` for two that must agree
    (graphs/filters/chain.py, with their settings).

    `grade`: how final answers are compared. `diagnosed_samples`: answers per question that are judged, the
    others only vote in `consistency`.
    """

    order: tuple[str, ...] = Field(default=("gold", "teacher"), min_length=1)
    grade: Literal["math", "text"] = "math"
    diagnosed_samples: int = Field(default=1, gt=0)

    @model_validator(mode="after")
    def _prm_named(self) -> Self:
        if self.prm is None and any("prm" in name for name in self.order):
            raise ValueError("filters.prm is needed by the filter 'prm'")
        return self


class BudgetSection(Settings):
    """`usd_per_round` stops before the call that would pass it; a run is one round. The others are what an
    estimate assumes where nothing is known yet."""

    usd_per_round: float | None = Field(default=None, ge=0)
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

    name: Strategy = "stat-sel"


class StatTrainSection(TrainSection):
    """The round with the paper's recipe (section 4): 3 epochs, batches of 8. `max_steps` shortens it."""

    batch_size: int = Field(default=8, gt=0)
    epochs: float = Field(default=3.0, gt=0)
    max_steps: int | None = Field(default=None, gt=0)
    sft: SftSettings = SftSettings(lora_dropout=0.05, max_grad_norm=0.3, weight_decay=0.1)


class EvaluateSection(Settings):
    """At most `items` questions of each held-out set, before and after."""

    items: int | None = Field(default=500, gt=0)
    temperature: float = Field(default=0.0, ge=0)


class StatConfig(Settings):
    """Everything. `answers` is a file of the student's answers; without it the student of `[student]`
    answers."""

    seed: int = Field(default=0, ge=0)
    plugins: tuple[Path, ...] = ()
    answers: Path | None = None
    data: DataSection
    catalog: CatalogSection = CatalogSection()
    student: StudentSection = StudentSection()
    engine: EngineSection = EngineSection(transformers=EngineSettings(batch_size=16))
    filters: FilterSection = FilterSection()
    teacher: TeacherSection = TeacherSection(kind="scripted")
    budget: BudgetSection = BudgetSection()
    strategy: StrategySection = StrategySection()
    duplicates: DuplicateSettings = DuplicateSettings()
    embed: EmbedSettings = EmbedSettings()
    train: StatTrainSection = StatTrainSection()
    evaluate: EvaluateSection = EvaluateSection()


_LOOP = "belongs to the loop; `skillloop stat` has"
NOT_HERE: Mapping[str, str] = {
    "task": f"{_LOOP} [data], with train and held_out, [catalog], and filters.grade",
    "monitor": f"{_LOOP} [filters] with the same settings, and filters.order",
    "curate": f"{_LOOP} strategy.name",
    "student.name": f"{_LOOP} one student, without a name",
    "budget.usd_per_day": f"{_LOOP} budget.usd_per_round, for the whole run",
    **{
        section: "belongs to the loop; `skillloop stat` has nothing like it"
        for section in (
            "log",
            "store",
            "registry",
            "profile",
            "drift",
            "policy",
            "gate",
            "demo",
            "rounds",
            "canary",
            "gateway",
            "ingest",
            "heldout",
        )
    },
}
"""Keys of the loop's file (loop/config.py), for the error that they get in one of `skillloop stat`."""


def load_stat(
    path: Path, environ: Mapping[str, str] | None = None, overrides: Mapping[str, object] | None = None
) -> StatConfig:
    """The configuration of `skillloop stat` in `path`. Variables of the loop's keys are left alone: both
    commands run in one environment. Raises `ConfigError`."""
    ours = {name: text for name, text in (environ or {}).items() if not _of_the_loop(name)}
    return load_settings(StatConfig, path, ours, overrides or {}, {**MOVED, **NOT_HERE})


def _of_the_loop(variable: str) -> bool:
    keys = variable.removeprefix(PREFIX).lower().split("__")
    return variable.startswith(PREFIX) and any(
        ".".join(keys[:depth]) in NOT_HERE for depth in range(1, len(keys) + 1)
    )
