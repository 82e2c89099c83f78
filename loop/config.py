"""Configuration of the online loop: one frozen object (how it is read: loop/loading.py).

A choice is made by `kind`; `loop.doors` has the tables of kinds. `skillloop stat` shares the sections that
mean the same (loop/offline/config.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, model_validator

from agent.budget import Caps
from agent.canary import CanarySettings
from agent.decision import PolicySettings
from agent.drift import DriftSettings
from agent.plan import StrategySettings
from agent.posterior import ReadSettings
from agent.replay import ReplaySettings
from agent.settings import Settings
from agent.strategies import STRATEGIES
from graphs.chat.settings import ChatSettings
from graphs.curate.settings import DuplicateSettings, EmbedSettings
from graphs.filters.chain import FilterSettings
from loop.loading import CONFIGS as CONFIGS
from loop.loading import ConfigError as ConfigError
from loop.loading import KindSection, load_settings
from loop.moved import MOVED, NOT_HERE
from serving.settings import EngineSettings, GatewaySettings, VllmSettings
from streams.kafka.settings import KafkaSettings
from training.settings import GateSettings, GrpoSettings, LaunchSettings, SftSettings

BUILTIN = "builtin:"


def _folder_or_builtin(base: object) -> object:
    return base if not isinstance(base, str) or base.startswith(BUILTIN) else Path(base)


Base = Annotated[Path | str, BeforeValidator(_folder_or_builtin)]
"""A student: a folder in Hugging Face format, or `builtin:llama` / `builtin:qwen` (the demo's)."""


class TaskSection(KindSection):
    """What the student is for: the demo's world, or `files` of questions as `skillloop stat` reads and writes
    them (docs/online.md).

    `catalog`: its catalog.jsonl. `pool`: questions with solutions that may be trained on. `held_out`:
    questions with answers for the gate, never trained on. `labels`: its labels.jsonl, for questions that name
    no skills themselves. `grade`: how answers are compared.
    """

    kind: str = "demo"
    catalog: Path | None = None
    pool: Path | None = None
    held_out: tuple[Path, ...] = ()
    labels: tuple[Path, ...] = ()
    grade: Literal["math", "text"] = "math"

    @model_validator(mode="after")
    def _files_named(self) -> Self:
        missing = [name for name in ("catalog", "pool", "held_out") if not getattr(self, name)]
        if self.kind == "files" and missing:
            raise ValueError(f"kind = 'files' needs {' and '.join(missing)}")
        return self


class StudentSection(Settings):
    """Which student, and how long it may answer.

    `hub_name` and `hub_revision` are what adapters call the base, so that PEFT finds it on other machines:
    its repository on the Hub and the commit. Empty: what the folder's place in the Hub's cache says, else the
    folder.
    """

    name: str = Field(default="demo", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    base: Base = "builtin:llama"
    max_new_tokens: int = Field(default=112, gt=0)
    hub_name: str = ""
    hub_revision: str = ""

    @model_validator(mode="after")
    def _revision_named(self) -> Self:
        if bool(self.hub_name) != bool(self.hub_revision):
            raise ValueError(
                "hub_name and hub_revision go together: a repository without a commit is no base"
            )
        return self


class EngineSection(KindSection):
    """What serves the student: `transformers` in this process, `vllm` servers (docs/adapters.md), or
    `scripted`, which answers what `options` say."""

    kind: str = "transformers"
    transformers: EngineSettings = EngineSettings()
    vllm: VllmSettings = VllmSettings()

    @model_validator(mode="after")
    def _servers_named(self) -> Self:
        missing = [f"vllm.{name}" for name in ("replicas", "store") if not getattr(self.vllm, name)]
        if self.kind == "vllm" and missing:
            raise ValueError(f"kind = 'vllm' needs {' and '.join(missing)} (docs/adapters.md)")
        return self


class LogSection(KindSection):
    """The event log: `local` is a SQLite file in the run's directory, `kafka` a cluster."""

    kind: str = "local"
    kafka: KafkaSettings = KafkaSettings()


class StoreSection(KindSection):
    """The state store: `sql`. An empty `url` means a SQLite file in the run's directory.

    `keep_days`: what `skillloop store compact` keeps, in days of event time before now. Not less than the 30
    days for which answers are in the log; an answer that comes again after its window, from a backfill or a
    dead letter (kept 90 days), is refused.
    """

    kind: str = "sql"
    keep_days: int = Field(default=120, ge=30)
    url: SecretStr = SecretStr("")


class MlflowSettings(Settings):
    """An empty `tracking_uri` means a SQLite file `mlflow.db` in the run's directory."""

    tracking_uri: str = ""


class RegistrySection(KindSection):
    """Where runs and versions are kept."""

    kind: str = "mlflow"
    mlflow: MlflowSettings = MlflowSettings()


class SymbolicSettings(Settings):
    """The rates make the demo's teacher as fallible as a real one: the paper's agrees with itself 70 % of the
    time."""

    error_rate: float = Field(default=0.0, ge=0, le=1)
    abstain_rate: float = Field(default=0.0, ge=0, le=1)
    solve_error_rate: float = Field(default=0.05, ge=0, le=1)


class ScriptedSettings(Settings):
    """`script` is the file of replies (loop/tasks/scripted.py)."""

    script: Path | None = None


class TeacherSection(KindSection):
    """The teacher: `symbolic` for the demo's world, `chat` for any OpenAI-compatible server (with its price,
    or declared free), or `scripted`, a fake with the replies of a file."""

    kind: str = "symbolic"
    symbolic: SymbolicSettings = SymbolicSettings()
    chat: ChatSettings | None = None
    scripted: ScriptedSettings = ScriptedSettings()

    @model_validator(mode="after")
    def _chat_is_set_up(self) -> Self:
        if self.kind == "chat" and self.chat is None:
            raise ValueError("kind = 'chat' needs its server in [teacher.chat] (docs/teacher.md)")
        return self


class TrainSection(KindSection):
    """The round's trainer. `batch_size` is examples per optimizer step over all devices, `max_length` the
    most tokens that an example may have."""

    kind: str = "sft"
    batch_size: int = Field(default=32, gt=0)
    max_length: int = Field(default=512, gt=1)
    sft: SftSettings = SftSettings()
    grpo: GrpoSettings = GrpoSettings()
    launch: LaunchSettings = LaunchSettings()

    @model_validator(mode="after")
    def _batches_divide(self) -> Self:
        self.grpo.micro_batches(self.batch_size)
        if self.kind in {"sft", "launch"}:
            self.sft.share(self.batch_size, self.launch.processes if self.kind == "launch" else 1)
        return self


class MonitorSection(FilterSettings):
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

    @property
    def topic(self) -> str:
        """What is consumed."""
        return "diagnoses" if self.source == "diagnoses" else "student-outputs"


def _policy_or_row(name: str) -> str:
    if name != "policy":
        STRATEGIES.choose(name)
    return name


OnlineStrategy = Annotated[str, AfterValidator(_policy_or_row)]


class RoundsSection(Settings):
    """How rounds are worked on. After `lease_s` seconds without a sign of life from the worker that has it, a
    round goes to another one.

    `approve`: what waits for a person (`skillloop approvals`): `data`, a round's data before anything is
    trained on it; `deploy`, a version that the gate let through before any user is led to it; or nothing
    (`auto`). Every `look_s` seconds a worker looks whether the person has decided.
    """

    lease_s: float = Field(default=60.0, gt=0)
    approve: Literal["auto", "data", "deploy"] = "auto"
    look_s: float = Field(default=5.0, gt=0, le=600)


class CanarySection(CanarySettings):
    """The canary, where vLLM servers answer users through `[gateway]`: before it is promoted, a version
    answers `share` of the sessions, and is compared with the champion every `look_s` seconds.

    Without enough evidence after `limit_s` seconds it goes back: no data, no promotion. For the first
    `watch_answers` answers after its promotion a version is rolled back when its difficult answers become
    more, by `margin`, than its predecessor's were during the trial; 0: never.
    """

    enabled: bool = True
    share: float = Field(default=0.1, gt=0, lt=1)
    look_s: float = Field(default=15.0, gt=0, le=600)
    limit_s: float = Field(default=86_400.0, gt=0)
    watch_answers: int = Field(default=5_000, ge=0)

    @property
    def weight(self) -> float:
        """The canary's weight beside a champion of weight 1."""
        return self.share / (1.0 - self.share)


class CurateSection(Settings):
    """How a round's data is made. `strategy` is `policy`, so many examples of each skill that the policy
    names, or one of agent/strategies.py, which plans from the champion's newest failures at these skills and
    makes as many examples in all. Its parameters are in `[strategy]`.

    At most `failures` difficult questions are planned from, sought in the newest `recent_records` of each
    partition of the log. Old data is replayed where the champion answers it right; `replay_candidates` pool
    items are tried for that.
    """

    strategy: OnlineStrategy = "policy"
    failures: int = Field(default=500, gt=0)
    recent_records: int = Field(default=20_000, gt=0)
    replay: ReplaySettings = ReplaySettings()
    replay_candidates: int = Field(default=2000, ge=0)


class IngestSection(Settings):
    """Which version of the student a logged chat completion is of, by the model it names.

    `models` maps names to versions: a number, or `"*"` for the number where the name has its star. A star
    otherwise stands for any text, and the name `""` for a line that names no model. Empty: the student's name
    is the version of `skillloop ingest --version`, and `<student>-v*` the version it says.
    """

    models: dict[str, Annotated[int, Field(ge=1, le=2**31 - 1)] | Literal["*"]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _stars_are_there(self) -> Self:
        for name, version in self.models.items():
            if version == "*" and name.count("*") != 1:
                raise ValueError(f"models: {name!r} = '*' needs one star in the name, where the version is")
        return self


class HeldOutSection(Settings):
    """How the held-out set grows (docs/decisions/0030). A question that traffic brings is reserved when its
    hash falls into `share` and one of its skills has fewer than `per_skill` held-out questions; 0: the set
    never grows. A reference answer that the application does not know is the teacher's, where
    `min_agreement` of `solutions` solutions end in it.
    """

    share: float = Field(default=0.1, ge=0, le=0.5)
    per_skill: int = Field(default=60, gt=0)
    solutions: int = Field(default=3, gt=1)
    min_agreement: int = Field(default=3, gt=1)

    @model_validator(mode="after")
    def _agreement_is_possible(self) -> Self:
        if self.min_agreement > self.solutions:
            raise ValueError(f"min_agreement {self.min_agreement} exceeds solutions {self.solutions}")
        return self


class DemoSection(Settings):
    """The demo's stream: `questions` in all, `tick` at a time; the mixture shifts at questions `first_shift`
    and `second_shift`, with `drift` `fixed` to two missing skills each, 20 % of the traffic each, and with
    `drawn` to what the seed says. The pool has `rich_pool`, `poor_pool` or `common_pool` items of a skill
    (`drawn`: of a raised one what the seed says), and `chain_pool` that chain skills as the original mixture
    does: data to replay."""

    drift: Literal["fixed", "drawn"] = "fixed"
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
    chain_pool: int = Field(default=400, ge=0)


class Config(Settings):
    """Everything. Sections that are not given have their defaults; without `[gateway]`, `skillloop up` serves
    no users. `plugins` are Python files that add kinds (docs/extending.md)."""

    seed: int = Field(default=0, ge=0)
    plugins: tuple[Path, ...] = ()
    student: StudentSection = StudentSection()
    engine: EngineSection = EngineSection()
    task: TaskSection = TaskSection()
    log: LogSection = LogSection()
    store: StoreSection = StoreSection()
    registry: RegistrySection = RegistrySection()
    teacher: TeacherSection = TeacherSection()
    monitor: MonitorSection = MonitorSection()
    profile: ReadSettings = ReadSettings()
    drift: DriftSettings = DriftSettings()
    policy: PolicySettings = PolicySettings()
    budget: Caps = Caps()
    rounds: RoundsSection = RoundsSection()
    canary: CanarySection = CanarySection()
    curate: CurateSection = CurateSection()
    strategy: StrategySettings = StrategySettings()
    duplicates: DuplicateSettings = DuplicateSettings()
    embed: EmbedSettings = EmbedSettings()
    train: TrainSection = TrainSection()
    gate: GateSettings = GateSettings()
    ingest: IngestSection = IngestSection()
    gateway: GatewaySettings | None = None
    heldout: HeldOutSection = HeldOutSection()
    demo: DemoSection = DemoSection()


def load(
    path: Path | None, environ: Mapping[str, str] | None = None, overrides: Mapping[str, object] | None = None
) -> Config:
    """The configuration of the loop in `path` (None: all defaults). Raises `ConfigError`."""
    return load_settings(Config, path, environ or {}, overrides or {}, {**MOVED, **NOT_HERE})
