"""A house for tests: services on two servers with vLLM's API, and rounds that the gate has let through."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from agent.catalog import SkillCatalog
from agent.decision import Decision, SkillTarget
from graphs.testing.scripted import ScriptedTeacher
from loop.config import load
from loop.tasks.task import Task
from loop.workers.decide import changed
from loop.workers.live import Reconciler
from loop.workers.record import Judged, Opened, RoundParts, Trained, parse_record
from loop.workers.services import Services
from serving.routes import RouteFile, RouteTable
from serving.settings import EngineSettings
from serving.testing.fake_vllm import FakeVllm
from serving.transformers_engine import TransformersEngine
from serving.vllm_engine import VllmEngine
from streams.clock import HandClock
from streams.crash import no_crash
from streams.files import write_text
from streams.state.rounds import Round, RoundStore
from streams.state.store import StateStore
from tests.students import build_student, random_adapter
from training.gate import GateVerdict
from training.versions import VersionInfo

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class ListedRegistry:
    """The base as version 1 and adapters after it; no MLflow."""

    adapters: dict[int, Path]
    aliases: dict[str, int] = field(default_factory=lambda: {"champion": 1})

    def version(self, version: int) -> VersionInfo:
        kind: Any = "adapter" if version in self.adapters else "base"
        return VersionInfo(version, kind, f"r{version}", "run", "sha", "base", None, "", None)

    def champion(self) -> VersionInfo:
        return self.version(self.aliases["champion"])

    def promote(self, version: int) -> VersionInfo:
        if self.aliases["champion"] != version:
            self.aliases |= {"previous": self.aliases["champion"], "champion": version}
        return self.champion()

    def alias(self, name: str) -> int | None:
        return self.aliases.get(name)

    def rollback(self, version: int, to: int | None = None) -> VersionInfo:
        assert self.aliases["champion"] == version and to is not None
        self.aliases = {"champion": to}
        return self.champion()

    def get_file(self, run_id: str, path: Path, artifact: str, sha256: str) -> Path:
        return path

    def download(self, version: int, directory: Path) -> Path | None:
        return self.adapters.get(version)


@dataclass
class House:
    """Services on two servers, whose registry knows versions 1 (the base) to 4."""

    services: Services
    servers: tuple[FakeVllm, FakeVllm]

    @property
    def table(self) -> RouteTable:
        table = RouteFile(self.services.routes).read()
        assert table is not None
        return table

    @property
    def registry(self) -> ListedRegistry:
        registry: Any = self.services.registry
        return registry  # type: ignore[no-any-return]

    def reconcile(self) -> None:
        Reconciler(self.services).step()

    def loaded(self) -> list[list[int]]:
        """The versions on each server."""
        return [sorted(int(name.split("-")[1][1:]) for name in server.adapters()) for server in self.servers]


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_student(tmp_path_factory.mktemp("base"), "llama")


@pytest.fixture(scope="module")
def adapters(student: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return {version: random_adapter(student, folder / str(version), seed=version) for version in (2, 3, 4)}


@pytest.fixture
def house(
    student: Path, adapters: dict[int, Path], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[House]:
    with ExitStack() as stack:
        one, two = (
            stack.enter_context(FakeVllm(TransformersEngine(student, EngineSettings(device="cpu"))))
            for _ in range(2)
        )
        vllm = {
            "replicas": [one.url, two.url],
            "store": tmp_path_factory.getbasetemp() / "shared-store",
            "reference_device": "cpu",
            "timeout_s": 30.0,
        }
        config = load(None, overrides={"engine": {"kind": "vllm", "vllm": vllm}})
        engine = VllmEngine(config.engine.vllm, student)
        stack.callback(engine.close)
        store, clock = StateStore(f"sqlite:///{tmp_path / 'state.db'}"), HandClock(NOW)
        teacher = ScriptedTeacher(labels={}, diagnoses=lambda *_: None)  # type: ignore[arg-type, return-value]
        registry: Any = ListedRegistry(dict(adapters))
        services = Services(
            config=config,
            root=tmp_path,
            store=store,
            rounds=RoundStore(store, parse_record, clock),
            task=Task(SkillCatalog.of(("add", "adds")), (), (), lambda *_: True, teacher, student),
            engine=engine,
            registry=registry,
            trainer=None,  # type: ignore[arg-type]
            clock=clock,
            crash=no_crash,
            owner="test",
        )
        yield House(services, (one, two))


def judged(services: Services, version: int) -> str:
    target = SkillTarget(skill="add", weight=1.0, examples=2, strategy="select")
    record = RoundParts(
        decision=Decision(kind="select", skills=(target,), examples=2, steps=1, reasons=("test",)),
        opened=Opened(champion=1, at=NOW, answers=0),
        trained=Trained(adapter_sha256="a", tokens=1, loss=0.1, parent=1),
        judged=Judged(
            version=version,
            verdict=GateVerdict(promote=True, reasons=("test",)),
            gains={},
            probe="greedy answers of servers may differ in a bit",
            run_id="run",
        ),
    )
    round_ = Round("demo-r001", "demo", 1, "judged", None, record)
    assert services.rounds.open(round_, changed(round_, "judged", {}))
    write_text(services.round_dir("demo-r001") / "evaluation.json", "{}")
    return round_.round_id
