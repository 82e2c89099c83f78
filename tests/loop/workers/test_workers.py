"""The workers with fakes for everything outside: bad input and failing dependencies."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from agent.catalog import SkillCatalog
from agent.decision import Decision, SkillTarget
from agent.items import HeldOutItem, PoolItem
from agent.profile import ALL, UNDECIDED, UNEXPLAINED, alone_row, wrong_row
from graphs.teacher import Diagnosis
from graphs.testing.scripted import ScriptedTeacher
from loop.backends import prepare
from loop.config import Config, ConfigError, load
from loop.tasks.task import Task
from loop.workers.curate import CurateWorker
from loop.workers.decide import changed
from loop.workers.monitor import MonitorWorker
from loop.workers.record import LoopRound, Opened, RoundParts, parse_record
from loop.workers.services import Services
from loop.workers.train import TrainWorker
from serving.scripted_engine import ScriptedEngine
from streams.clock import HandClock
from streams.codec import Codec, encode
from streams.crash import no_crash
from streams.events import Diagnosed, StudentOutput
from streams.log import Outgoing
from streams.memory_log import MemoryLog
from streams.state.rounds import Round, RoundStore
from streams.state.store import StateStore
from training.errors import HeldOutOverlap, RegistryUnavailable
from training.testing.folder_registry import FolderRegistry

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CATALOG = SkillCatalog.of(("add", "adds"), ("sub", "subtracts"))


def pool_item(number: int, skill: str = "add") -> PoolItem:
    return PoolItem(
        item_id=f"p{number}", question=f"what is {number} and 1", solution="s", answer="a", skills=(skill,)
    )


def held_out_item(question: str) -> HeldOutItem:
    return HeldOutItem(item_id="h1", question=question, answer="a", skills=("add",), stratum="skill:add")


def make_task(teacher: Any, pool: Sequence[PoolItem] = ()) -> Task:
    return Task(
        CATALOG,
        tuple(pool),
        (held_out_item("held out 99"),),
        lambda expected, answer: expected == answer,
        teacher,
        Path("base"),
    )


class AbsentRegistry:
    """An MLflow that is away."""

    def champion(self) -> Any:
        raise RegistryUnavailable("MLflow is away")

    def start_run(self, round_id: str, run_id: str | None = None) -> str:
        raise RegistryUnavailable("MLflow is away")

    def download(self, version: int, to: Path) -> Any:
        raise RegistryUnavailable("MLflow is away")


def make_services(
    tmp_path: Path, teacher: Any, pool: Sequence[PoolItem] = (), config: Config | None = None
) -> Services:
    store, clock = StateStore(f"sqlite:///{tmp_path / 'state.db'}"), HandClock(NOW)
    engine = ScriptedEngine(lambda prompt, version, sample: "answer")
    engine.load(1, None)
    parts: dict[str, Any] = {
        "engine": engine,
        "registry": AbsentRegistry(),
        "clock": clock,
        "trainer": None,  # nothing gets that far
        "crash": no_crash,
        "owner": "test",
    }
    return Services(
        config=config or load(None),
        root=tmp_path,
        store=store,
        rounds=RoundStore(store, parse_record, clock),
        task=make_task(teacher, pool),
        **parts,
    )


def output(number: int, **changes: Any) -> StudentOutput:
    values = {
        "event_id": f"e{number}",
        "occurred_at": NOW,
        "student": "demo",
        "student_version": 1,
        "question": f"q{number}",
        "answer": "x",
    }
    return StudentOutput(**{**values, **changes})


def planned(services: Services, skill: str = "add", strategy: Any = "select") -> LoopRound:
    target = SkillTarget(skill=skill, weight=1.0, examples=2, strategy=strategy)
    decision = Decision(kind=strategy, skills=(target,), examples=2, steps=1, reasons=("test",))
    record = RoundParts(decision=decision, opened=Opened(champion=1, at=NOW, answers=0))
    round_ = Round("demo-r001", "demo", 1, "planned", None, record)
    assert services.rounds.open(round_, changed(round_, "planned", {}))
    return round_


def teacher() -> ScriptedTeacher:
    """Says that every answer lacks "add", and names skills that no catalog has."""
    return ScriptedTeacher(
        labels={f"q{number}": ("add", "no-such-skill") for number in range(5)},
        diagnoses=lambda question, answer, needed: Diagnosis(
            verdict="incorrect", missing=("add", "made-up"), evidence=answer
        ),
    )


def fold_outputs(services: Services, events: Sequence[StudentOutput]) -> MemoryLog:
    log = MemoryLog()
    log.append([encode(event) for event in events])
    MonitorWorker(services, log).step()
    return log


def test_unknown_skills_of_a_teacher_are_discarded_and_counted(tmp_path: Path) -> None:
    services = make_services(tmp_path, teacher())
    fold_outputs(services, [output(1), output(2)])
    counts = {key[2]: value for key, value in services.store.buckets("demo").items()}
    coverage = {UNDECIDED: (2, 0), UNEXPLAINED: (2, 0), wrong_row("add"): (2, 0)}
    coverage[alone_row("add")] = (2, 0)
    assert counts == {"add": (2, 2), ALL: (2, 2), **coverage}


def test_an_event_from_the_future_is_a_dead_letter_and_moves_no_clock(tmp_path: Path) -> None:
    services = make_services(tmp_path, teacher())
    log = fold_outputs(services, [output(1), output(2, occurred_at=NOW + timedelta(days=400))])
    letters = list(log.read("student-outputs.dlq"))
    assert len(letters) == 1 and b"future" in dict(letters[0].headers)["dlq_message"]
    assert services.store.watermarks("demo").get(1) == (1, NOW.timestamp())


def test_a_student_that_cannot_be_sampled_now_makes_no_dead_letter(tmp_path: Path) -> None:
    config = load(None, overrides={"monitor": {"filters": ["consistency"], "samples": 3}})
    services = make_services(tmp_path, teacher(), config=config)
    log = MemoryLog()
    log.append([encode(output(1)), encode(output(2, student_version=7))])
    worker = MonitorWorker(services, log)
    assert not worker.step() and worker.loop.waiting and not list(log.read("student-outputs.dlq"))
    services.engine.load(7, None)
    assert MonitorWorker(services, log).step()
    events = [Codec().decode(record) for record in log.read("diagnoses")]
    assert [(event.verdict, event.decided_by) for event in events if isinstance(event, Diagnosed)] == [
        ("correct", "consistency"),
        ("correct", "consistency"),
    ]


def test_diagnoses_of_a_teacher_outside_are_folded_and_watched(tmp_path: Path) -> None:
    """The teacher in here is not asked; what it would have written into the log gives the profile that it
    would have given."""
    asked = make_services(tmp_path / "inside", teacher())
    events = [output(number, occurred_at=NOW + timedelta(seconds=number)) for number in range(3)]
    diagnoses = list(fold_outputs(asked, events).read("diagnoses"))
    config = load(None, overrides={"monitor": {"source": "diagnoses"}})
    services = make_services(tmp_path / "outside", None, config=config)
    log = MemoryLog()
    log.append([Outgoing("diagnoses", r.key, r.value, r.headers) for r in diagnoses] * 2)
    MonitorWorker(services, log).step()
    assert services.store.buckets("demo") == asked.store.buckets("demo") != {}
    assert (
        services.store.watermarks("demo").get(1)
        == asked.store.watermarks("demo").get(1)
        == (3, NOW.timestamp() + 2)
    )


def test_a_round_without_pool_fails_with_the_skill_and_frees_the_student(tmp_path: Path) -> None:
    """No attempt can mend that, so there is one only."""
    services = make_services(tmp_path, teacher(), [pool_item(1)])
    planned(services, skill="sub")
    assert CurateWorker(services).step()
    ended = services.rounds.get("demo-r001")
    assert ended is not None and ended.state == "failed" and ended.record.ended is not None
    assert "'sub'" in ended.record.ended.error


def test_a_curation_that_was_overtaken_writes_no_data(tmp_path: Path) -> None:
    services = make_services(tmp_path, teacher(), [pool_item(number) for number in range(4)])
    planned(services)

    def overtaken(name: str) -> None:
        if name == "curate.assemble.end":
            services.clock.sleep(2 * services.config.rounds.lease_s)
            assert services.rounds.claim("planned", "another", 60.0) is not None

    CurateWorker(dataclasses.replace(services, crash=overtaken)).step()
    held = services.rounds.get("demo-r001")
    assert held is not None and (held.state, held.owner, held.failures) == ("planned", "another", 0)
    assert not list(tmp_path.glob("rounds/**/dataset.jsonl"))


def test_an_absent_registry_leaves_the_round_where_it_is(tmp_path: Path) -> None:
    services = make_services(tmp_path, teacher(), [pool_item(number) for number in range(4)])
    planned(services)
    present = dataclasses.replace(services, registry=FolderRegistry(tmp_path / "store"))
    for state, worker in (("planned", CurateWorker(services)), ("curated", TrainWorker(services))):
        for failures in range(1, 6):
            assert not worker.step() and worker.failures == failures
            services.clock.sleep(60)
        kept = services.rounds.get("demo-r001")
        assert kept is not None and kept.state == state and kept.failures == 0
        CurateWorker(present).step()


def test_a_pool_that_holds_evaluation_questions_is_refused() -> None:
    leak = pool_item(1).model_copy(update={"question": " HELD out 99 "})
    with pytest.raises(HeldOutOverlap, match="'h1' is pool item 'p1'"):
        make_task(teacher(), [leak])


def test_an_unwritable_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="choose another folder"):
        prepare(tmp_path / "file" / "run")
