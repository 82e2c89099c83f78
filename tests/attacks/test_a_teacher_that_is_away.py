"""Attacks: the teacher is away for a long time while a round waits to be curated."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from agent.catalog import SkillCatalog
from agent.decision import Decision, SkillTarget
from agent.items import HeldOutItem, PoolItem
from graphs.teacher import TeacherExhausted
from graphs.testing.scripted import ScriptedTeacher
from loop.config import load
from loop.tasks.task import Task
from loop.workers.curate import CurateWorker
from loop.workers.decide import changed
from loop.workers.record import Opened, RoundParts, open_rounds
from loop.workers.services import Services
from serving.scripted_engine import ScriptedEngine
from streams.clock import HandClock
from streams.crash import no_crash
from streams.state.rounds import Round
from streams.state.store import StateStore

NOW = datetime(2026, 1, 1, tzinfo=UTC)
POOL = tuple(
    PoolItem(
        item_id=f"p{n}", question=f"what is {n}", solution="so", answer="1", skills=("add", "sub")[n % 2 :]
    )
    for n in range(40)
)


def absent(skill: str, references: Sequence[PoolItem], count: int, seed: int) -> Sequence[str]:
    raise TeacherExhausted("no route to host")


@pytest.fixture
def asked() -> list[str]:
    """What the student was asked."""
    return []


@pytest.fixture
def services(tmp_path: Path, asked: list[str]) -> Services:
    def answered(prompt: str, version: int, sample: int) -> str:
        asked.append(prompt)
        return "1"

    clock = HandClock(NOW)
    store = StateStore(f"sqlite:///{tmp_path}/state.db", clock)
    engine = ScriptedEngine(answered)
    engine.load(1, None)
    held_out = HeldOutItem(item_id="h", question="held out", answer="1", skills=("add",), stratum="add")
    catalog = SkillCatalog.of(("add", ""), ("sub", ""))
    teacher = ScriptedTeacher(writes=absent)
    task = Task(catalog, POOL, (held_out,), lambda want, got: want == got, teacher, Path("base"))
    made = Services(
        config=load(None),
        root=tmp_path,
        store=store,
        rounds=open_rounds(store),
        task=task,
        engine=engine,
        registry=None,  # type: ignore[arg-type]
        trainer=None,  # type: ignore[arg-type]
        clock=clock,
        crash=no_crash,
        owner="test",
    )
    target = SkillTarget(skill="add", weight=1.0, examples=6, strategy="synthesize")
    decision = Decision(kind="synthesize", skills=(target,), examples=6, steps=1, reasons=("test",))
    round_ = Round(
        "demo-r001",
        "demo",
        1,
        "planned",
        None,
        RoundParts(decision=decision, opened=Opened(champion=1, at=NOW, answers=0)),
    )
    made.rounds.open(round_, changed(round_, "planned", {}))
    return made


def test_minutes_without_the_teacher_generates_the_replay_answers_once(
    services: Services, asked: list[str]
) -> None:
    """All candidates were answered again every second."""
    worker = CurateWorker(services)
    attempts = 0
    for _ in range(120):
        before = worker.failures
        worker.step()
        attempts += worker.failures > before
        services.clock.sleep(1.0)
    assert len(asked) == len(set(asked)) == 20  # the items that need other skills than the round's
    assert 5 <= attempts <= 9  # half a second, then twice as long each time, a minute at most
    round_ = services.rounds.get("demo-r001")
    assert round_ is not None and (round_.state, round_.failures) == ("planned", 0)
