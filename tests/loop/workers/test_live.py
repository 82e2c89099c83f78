"""What users get: deploy worker and reconciler before servers with vLLM's API."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
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
from loop.workers.deploy import DeployWorker
from loop.workers.live import Reconciler, lead_users
from loop.workers.record import Judged, Opened, RoundParts, Trained, parse_record
from loop.workers.services import Services
from serving.engine import EngineUnavailable
from serving.routes import Activity, RouteFile, RouteTable, Share, report
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


def test_users_are_led_to_the_champion_on_every_server(house: House) -> None:
    house.reconcile()
    assert house.table.shares == (Share(version=1, model="base"),)
    assert {replica.url for replica in house.table.replicas} == {server.url for server in house.servers}
    assert house.services.rounds.route("demo") == (1, None)
    house.registry.promote(2)  # by hand, in MLflow
    house.reconcile()
    (share,) = house.table.shares
    assert share.version == 2 and share.model in house.servers[0].adapters()
    assert house.services.rounds.route("demo") == (2, 1) and house.loaded() == [[2], [2]]
    revision = house.table.revision
    house.reconcile()
    assert house.table.revision == revision, "nothing changed, so nothing is written"


def test_old_versions_stay_until_no_gateway_needs_them(house: House) -> None:
    for version in (2, 3):
        house.registry.promote(version)
        house.reconcile()
    assert house.loaded() == [[2, 3], [2, 3]], "the predecessor stays, for a way back without a load"
    (two,) = (name for name in house.servers[0].adapters() if "-v2-" in name)
    busy = Activity(gateway="g", at=time.time(), revision=house.table.revision + 1, in_flight={two: 1})
    report(house.services.routes, busy)
    house.registry.promote(4)
    house.reconcile()
    assert house.loaded() == [[2, 3, 4], [2, 3, 4]], "an answer of version 2 is under way"
    report(house.services.routes, busy.model_copy(update={"in_flight": {}}))
    house.reconcile()
    assert house.loaded() == [[3, 4], [3, 4]]


def test_a_restarted_server_gets_the_champion_before_it_gets_users(house: House) -> None:
    steady, other = house.servers
    house.registry.promote(2)
    house.reconcile()
    other.stop()
    house.reconcile()
    assert [replica.url for replica in house.table.replicas] == [steady.url]
    other.start()
    other.mute = True  # it comes back and serves the base under the adapter's name
    house.reconcile()
    assert [replica.url for replica in house.table.replicas] == [steady.url] and house.loaded() == [[2], []]
    other.mute = False
    house.reconcile()
    assert len(house.table.replicas) == 2 and house.loaded() == [[2], [2]]


def test_an_outage_of_all_servers_changes_nothing_and_ends_nothing(house: House) -> None:
    house.registry.promote(2)
    house.reconcile()
    before = house.table
    for server in house.servers:
        server.stop()
    house.reconcile()
    assert house.table == before
    with pytest.raises(EngineUnavailable):
        lead_users(house.services, 2)
    house.servers[0].start()
    house.reconcile()
    assert house.loaded() == [[2], []] and len(house.table.replicas) == 1


def test_canaries_stay_while_their_champion_does(house: House) -> None:
    house.reconcile()
    house.services.load(3)
    (canary_model,) = house.servers[0].adapters()
    canary = Share(version=3, model=canary_model, weight=0.1)
    table = house.table
    RouteFile(house.services.routes).write(table.model_copy(update={"shares": (*table.shares, canary)}))
    house.reconcile()
    assert [share.version for share in house.table.shares] == [1, 3]
    house.registry.promote(2)
    house.reconcile()
    assert [share.version for share in house.table.shares] == [2]


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


def test_a_judged_round_is_promoted_on_the_servers(house: House) -> None:
    round_id = judged(house.services, 2)
    worker = DeployWorker(house.services)
    while worker.step():
        pass
    finished = house.services.rounds.get(round_id)
    assert finished is not None and finished.state == "promoted", finished
    assert house.registry.champion().version == 2 and house.table.shares[0].version == 2
    assert house.services.rounds.route("demo") == (2, None) and house.loaded() == [[2], [2]]


def test_a_server_that_refuses_leaves_the_champion_where_it_is(house: House) -> None:
    house.reconcile()
    before = house.table
    round_id = judged(house.services, 2)
    house.servers[1].refuses = "no room"
    worker = DeployWorker(house.services)
    worker.step()
    waiting = house.services.rounds.get(round_id)
    assert waiting is not None and waiting.state == "judged" and "no room" in str(waiting.error)
    assert house.registry.champion().version == 1 and house.table == before and house.loaded() == [[], []]


@pytest.mark.parametrize("place", ["deploy.before-alias", "deploy.after-alias", "deploy.after-table"])
def test_a_crash_at_any_step_ends_where_it_would_have(house: House, place: str) -> None:
    class Crash(BaseException):
        pass

    def crash(name: str) -> None:
        if name == place and not crashed:
            crashed.append(name)
            raise Crash

    crashed: list[str] = []
    services = replace(house.services, crash=crash)
    round_id = judged(services, 2)
    with pytest.raises(Crash):
        DeployWorker(services).step()
    services.clock.sleep(1.0)
    worker = DeployWorker(services)
    while worker.step():
        pass
    finished = services.rounds.get(round_id)
    assert finished is not None and finished.state == "promoted"
    assert house.table.shares[0].version == 2 and services.rounds.route("demo") == (2, None)
