"""The curate worker with each strategy chosen by configuration, planning from what the log says of the
student's failures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from agent.catalog import SkillCatalog
from agent.decision import Decision, SkillTarget
from agent.items import Example, HeldOutItem, PoolItem
from agent.strategies import STRATEGIES
from graphs.testing.scripted import ScriptedTeacher
from loop.backends import open_log
from loop.config import load
from loop.tasks.task import Task
from loop.workers.curate import CurateWorker
from loop.workers.decide import changed
from loop.workers.failures import recent_failures
from loop.workers.record import Judged, Opened, RoundParts, open_rounds
from loop.workers.services import Services
from serving.scripted_engine import ScriptedEngine
from streams.clock import HandClock
from streams.codec import encode
from streams.crash import Crashed, Raise, no_crash
from streams.events import Diagnosed, StudentOutput
from streams.memory_log import MemoryLog
from streams.state import tables
from streams.state.rounds import Round
from streams.state.store import StateStore
from training.mix import read_dataset
from training.testing.folder_registry import FolderRegistry
from training.verdict import GateVerdict, Row

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SKILLS = ("add", "sub", "gcd")
TOYS = ("kites", "lamps", "drums", "boats", "hats", "jars", "inks", "gates", "flutes", "eagles")
POOL = tuple(
    PoolItem(
        item_id=f"p{at}",
        question=f"{SKILLS[at % 3]} the {TOYS[at % 10]} of shelf {at}",
        solution=f"worked out {at}",
        answer=str(at),
        skills=(SKILLS[at % 3],),
    )
    for at in range(60)
)
Session = Callable[..., Services]


def failed(number: int, **changes: Any) -> tuple[StudentOutput, Diagnosed]:
    """One answer and its diagnosis: the `number`-th question, about the `number`-th toys, lacked "add"."""
    when = NOW + timedelta(seconds=number)
    common = {"occurred_at": when, "student": "demo", "student_version": 1}
    output = StudentOutput(
        event_id=f"e{number}", question=f"please add the {TOYS[number % 10]}", answer="no", **common
    )
    known = {"verdict": "incorrect", "needed": ("add", "sub"), "missing": ("add",)}
    known |= {"decided_by": "teacher", "teacher": "t", "bucket": 0, "causation_id": output.event_id}
    return output, Diagnosed(event_id=f"d{number}", **(common | known | changes))


def log_of(*pairs: tuple[StudentOutput, Diagnosed]) -> MemoryLog:
    log = MemoryLog()
    log.append([encode(event) for pair in pairs for event in pair])
    return log


@pytest.fixture
def session(tmp_path: Path) -> Session:
    """Opens services with one planned round: six examples for "add"."""

    def open_session(strategy: str, crash: Any = no_crash, folder: str = "run") -> Services:
        root = tmp_path / folder
        root.mkdir(exist_ok=True)
        store = StateStore(f"sqlite:///{root / 'state.db'}")
        engine = ScriptedEngine(lambda prompt, version, sample: "answer")
        engine.load(1, None)
        held_out = HeldOutItem(item_id="h", question="held out", answer="1", skills=("add",), stratum="add")
        catalog = SkillCatalog.of(*((skill, "") for skill in SKILLS))
        levels = {item.item_id: at % 5 + 1 for at, item in enumerate(POOL)}
        task = Task(
            catalog, POOL, (held_out,), lambda *_: None, ScriptedTeacher(), Path("base"), levels=levels
        )
        services = Services(
            config=load(None, overrides={"curate": {"strategy": strategy}}),
            root=root,
            store=store,
            rounds=open_rounds(store),
            task=task,
            engine=engine,
            registry=FolderRegistry(tmp_path / "store"),
            trainer=None,  # type: ignore[arg-type]
            clock=HandClock(NOW),
            crash=crash,
            owner="test",
        )
        target = SkillTarget(skill="add", weight=1.0, examples=6, strategy="synthesize")
        decision = Decision(kind="synthesize", skills=(target,), examples=6, steps=1, reasons=("test",))
        record = RoundParts(decision=decision, opened=Opened(champion=1, at=NOW, answers=0))
        round_ = Round("demo-r001", "demo", 1, "planned", None, record)
        services.rounds.open(round_, changed(round_, "planned", {}))
        return services

    return open_session


def curate(services: Services, log: MemoryLog | None = None) -> list[Example]:
    """Let the worker curate the round; its target examples. Without a log it reads the configured one."""
    read_log = None if log is None else lambda: nullcontext(log)
    assert CurateWorker(services, read_log).step()
    ended = services.rounds.get("demo-r001")
    assert ended is not None and ended.state == "curated", ended
    examples = read_dataset(services.round_dir("demo-r001") / "dataset.jsonl")
    return [example for example in examples if example.provenance.strategy != "replay"]


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_every_strategy_makes_as_many_examples_as_the_policy_decided(session: Session, strategy: str) -> None:
    made = curate(session(strategy), log_of(*map(failed, range(4))))
    assert len(made) == 6
    part = {"stat-syn": "new", "embed-syn": "new", "mix": None}.get(strategy, strategy)
    parts = {example.provenance.part for example in made}
    assert parts == ({"stat-sel", "random"} if part is None else {part})
    if strategy not in ("original", "augment", "hard"):
        assert all((example.provenance.cause or "").startswith("asked-") for example in made)


def test_embed_sel_takes_the_pool_questions_most_like_those_that_failed(session: Session) -> None:
    services = session("embed-sel")
    with open_log(services.config, services.root) as log:
        log.append([encode(event) for number in (0, 1) for event in failed(number)])
    made = curate(services)
    assert {word for example in made for word in TOYS if word in example.prompt} == {"kites", "lamps"}


def test_rewritten_solutions_come_from_the_teacher(session: Session) -> None:
    made = curate(session("stat-sel"), log_of(failed(0)))
    assert all("add" in example.skills and example.completion.startswith("way ") for example in made)
    assert {example.provenance.teacher for example in made} == {"scripted"}


def test_without_failures_a_strategy_says_what_it_lacks(session: Session) -> None:
    services = session("stat-sel")
    assert CurateWorker(services, lambda: nullcontext(log_of(failed(0, student_version=2)))).step()
    ended = services.rounds.get("demo-r001")
    assert ended is not None and ended.state == "failed" and ended.record.ended is not None
    assert "no difficult questions" in ended.record.ended.error


def test_a_resumed_round_plans_from_what_it_saw_when_it_began(session: Session) -> None:
    whole = curate(session("stat-sel", folder="whole"), log_of(failed(0)))
    log = log_of(failed(0))
    with pytest.raises(Crashed):
        CurateWorker(session("stat-sel", Raise("curate.rewrite.start")), lambda: nullcontext(log)).step()
    log.append([encode(event) for event in failed(1)])
    assert curate(session("stat-sel"), log) == whole


def seen(log: MemoryLog, at_most: int = 9, records: int = 99) -> Mapping[str, tuple[str, ...]]:
    found = recent_failures(log, "demo", 1, {"add", "gcd"}, at_most, records)
    return {found.questions.get(one.question_id, one.question_id): one.missing for one in found.failures}


def test_the_newest_failures_of_the_served_version_at_the_rounds_skills_count() -> None:
    others = [
        failed(5, student_version=2),
        failed(6, student="else"),
        failed(7, missing=("sub",)),
        failed(8, verdict="correct", missing=()),
    ]
    log = log_of(*map(failed, range(3)), *others)
    everything = ["please add the drums", "please add the lamps", "please add the kites"]
    assert list(seen(log)) == everything
    assert list(seen(log, at_most=2)) == everything[:2]


def test_answers_to_one_question_are_one_failure_and_repeats_of_an_event_are_none() -> None:
    both = failed(10, missing=("gcd", "sub"), needed=("gcd", "sub"))
    log = log_of(failed(0), both, both)
    assert seen(log) == {"please add the kites": ("gcd", "add")}


def test_a_question_that_is_out_of_reach_is_known_by_its_answer() -> None:
    output, diagnosed = failed(0)
    log = MemoryLog()
    log.append([encode(output), *(encode(failed(number)[0]) for number in range(1, 4)), encode(diagnosed)])
    assert seen(log, records=99) == {output.question: ("add",)}
    assert seen(log, records=1) == {"e0": ("add",)}


def test_what_cannot_be_read_is_left_to_the_dead_letters() -> None:
    log = log_of(failed(0))
    log.append([replace(encode(failed(1)[1]), value=b"{")])
    assert list(seen(log)) == ["please add the kites"]


def test_a_skill_that_a_rejected_round_has_harmed_is_replayed_though_it_is_answered_wrong(
    session: Session,
) -> None:
    services = session("stat-syn")

    def replayed() -> set[str]:
        curate(services, log_of(*map(failed, range(4))))
        dataset = read_dataset(services.round_dir("demo-r001") / "dataset.jsonl")
        return {skill for e in dataset if e.provenance.strategy == "replay" for skill in e.skills}

    row = Row(
        name="gcd + sub", kind="pair", items=60, champion=0.1, challenger=0.0, gained=0, lost=6, p_value=0.01,
        lower_bound=-0.2, passed=False, harm=0.01,
    )  # fmt: skip
    verdict = GateVerdict(promote=False, reasons=("pair gcd + sub: it lost",), table=(row,))
    now = services.rounds.get("demo-r001")
    assert now is not None
    judged = Judged(version=2, verdict=verdict, gains={}, probe="", run_id="r")
    before = now.record.plus(judged).model_dump_json()
    row_of_store = {"round_id": "demo-r000", "student": "demo", "number": 0, "state": "rejected"}
    with services.store.transaction() as connection:
        connection.execute(tables.rounds.insert(), row_of_store | {"record": before})
    assert replayed() == {"gcd", "sub"}
