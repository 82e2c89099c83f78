"""The held-out set grows with the traffic, through the real workers: what it takes, what it never takes, and
what a round is judged on."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from agent.items import HeldOutItem, PoolItem
from graphs.curate.duplicates import question_key
from graphs.teacher import Solution
from loop.config import Config, ConfigError, load
from loop.workers.heldout import HeldOutSet
from loop.workers.judge import champion_evaluation
from loop.workers.messages import Evaluating, Message
from loop.workers.reserve import falls_into
from streams.state.held_out import HeldOutStore
from streams.state.store import StateStore
from tests.loop.scripted import ScriptedLoop, answer_of, ask, held_out, pool
from training.evaluate import item_set_sha256
from training.mix import read_dataset

SHARE, SHARES = 0.3, {"add": 0.6, "gcd": 0.4}


def config(share: float = SHARE, **others: Any) -> Config:
    policy = {"examples_per_skill": 40, "min_pool": 30, "base_steps": 20, "min_steps": 20}
    policy |= {"min_answers": 300}
    sections: dict[str, Any] = {"policy": policy, "monitor": {"filters": ["gold", "teacher"]}}
    return load(
        None, overrides=sections | {"strategy": {"rewrite": False}, "heldout": {"share": share}} | others
    )


def good(version: int, skill: str) -> float:
    known = {"add": 0.97, "gcd": 0.3, "max": 0.9}
    return known[skill] if version == 1 or skill != "gcd" else 0.95


def loop_of(
    root: Path, items: Sequence[PoolItem] | None = None, gold: bool = True, share: float = SHARE
) -> ScriptedLoop:
    """Nobody wrote held-out questions for "gcd"."""
    chosen = [*pool("gcd", 60), *pool("add", 60)] if items is None else items
    return ScriptedLoop(root, config(share), good, chosen, held_out("add", 300, "skill:add"), SHARES, gold)


def grown(room: ScriptedLoop, version: int) -> list[HeldOutItem]:
    return [item for item in room.services.held_out.of(version) if item.item_id.startswith("traffic/")]


def taught(room: ScriptedLoop, round_id: str) -> set[str]:
    rows = read_dataset(room.services.round_dir(round_id) / "dataset.jsonl")
    return {question_key(row.prompt) for row in rows}


def test_a_skill_without_held_out_questions_gets_them_from_traffic_and_is_taught(tmp_path: Path) -> None:
    room = loop_of(tmp_path)
    room.serve(100)
    waits = room.workers.monitor.decider.standing()
    (why,) = [told for told in (waits.decision.reasons if waits else ()) if told.startswith("gcd: ")]
    assert "held-out items, the gate needs 20" in why and "wait for traffic" in why
    first = room.serve_until(rounds=1, at_most=600)
    assert first.state == "promoted" and room.version == 2, first.record.judged
    assert first.record.skills == ("gcd",) and first.record.opened.held_out == 1
    items, latest = grown(room, 1), room.services.held_out.latest()
    assert len(items) >= 20 and {item.stratum for item in items} == {"skill:gcd"}
    assert all(item.answer == answer_of(item.question) and falls_into(item.question, SHARE) for item in items)
    assert latest.sha256 == item_set_sha256(room.services.held_out.of(1)) and latest.items == 300 + len(items)
    assert not taught(room, first.round_id) & {question_key(item.question) for item in items}
    (gain,) = [row for row in first.record.need_judged().verdict.table if row.kind == "targets"]
    assert gain.items == len(items) and gain.challenger - gain.champion > 0.4


def test_without_a_share_the_skill_is_never_taught(tmp_path: Path) -> None:
    room = loop_of(tmp_path, share=0.0)
    room.serve(400)
    waits = room.workers.monitor.decider.standing()
    assert not room.rounds and waits is not None
    assert any("0 held-out items, the gate needs 20" in told for told in waits.decision.reasons)


def test_both_students_and_all_earlier_champions_are_measured_on_the_rounds_version(tmp_path: Path) -> None:
    """What arrives later is in the next version only; what was measured is not measured again."""
    room = loop_of(tmp_path)
    first = room.serve_until(rounds=1, at_most=600)
    before = room.services.held_out.of(1)
    room.shares = {"add": 0.5, "gcd": 0.2, "max": 0.3}
    room.serve(300)
    assert room.services.held_out.of(1) == before
    waiting = [known.item for known in room.services.held_out.reserved() if known.version is None]
    assert {item.skills for item in waiting} >= {("max",)}
    assert room.workers.monitor.decider.held_out.grow(waiting, [], answers=1_000)
    after = room.services.held_out.of(2)
    assert set(before) < set(after) and len(after) == len(before) + len(waiting)
    told: list[Message] = []
    services = room.listening(told.append)
    assert champion_evaluation(services, 2, before).evaluation.items_sha256 == item_set_sha256(before)
    evaluation = champion_evaluation(services, 2, after).evaluation
    assert evaluation.items_sha256 == item_set_sha256(after) and len(evaluation.outcomes) == len(after)
    assert [message.items for message in told if isinstance(message, Evaluating)] == [len(waiting)]
    assert first.record.need_judged().verdict.promote


def test_the_set_survives_a_restart_and_is_the_same_from_the_same_traffic(tmp_path: Path) -> None:
    room, other = loop_of(tmp_path / "one"), loop_of(tmp_path / "other")
    for number, one in enumerate((room, other)):
        for _ in range(4):
            one.serve(100)
            if number:
                one.restart()
    assert room.rounds and room.services.held_out.latest() == other.services.held_out.latest()
    assert room.services.held_out.of(1) == other.services.held_out.of(1)


def test_reference_answers_without_gold_are_those_that_the_teacher_agrees_on(tmp_path: Path) -> None:
    room = loop_of(tmp_path, gold=False)
    odd = {ask("user", "gcd", number) for number in range(0, 400, 2)}
    right = room.teacher.solves

    def solves(question: str, count: int, seed: int) -> Sequence[Solution]:
        solved = list(right(question, count, seed))
        return [Solution(text="5", answer="5"), *solved[1:]] if question in odd else solved

    room.teacher.solves = solves
    room.serve(400)
    items = [known.item for known in room.services.held_out.reserved()]
    assert len(items) >= 5 and not odd & {item.question for item in items}
    assert all(item.answer == answer_of(item.question) for item in items)
    assert room.teacher.count("solve") > len(items)


def test_what_may_be_trained_on_is_not_reserved(tmp_path: Path) -> None:
    asked = [ask("user", "gcd", number) for number in range(300)]
    copies = [
        PoolItem(item_id=f"c{at}", question=text, solution="s", answer="1", skills=("gcd",))
        for at, text in enumerate(asked[:150])
    ]
    room = loop_of(tmp_path, [*pool("add", 60), *copies])
    room.serve(300)
    reserved = {known.item.question for known in room.services.held_out.reserved()}
    assert reserved and not reserved & set(asked[:150])


def test_what_is_reserved_is_not_trained_on_though_the_teacher_writes_it(tmp_path: Path) -> None:
    room = loop_of(tmp_path, pool("add", 60))

    def writes(skill: str, references: Sequence[PoolItem], count: int, seed: int) -> list[str]:
        """Now and then reserved questions, word for word or nearly, instead of its own."""
        reserved = [known.item.question for known in room.services.held_out.reserved()]
        own = [ask(f"new {seed % 9973}", skill, 1000 + number) for number in range(count)]
        near = [f"Now, {question}" for question in reserved]
        return (reserved, near, own, own)[seed % 4][:count]

    room.teacher.writes = writes
    first = room.serve_until(rounds=1, at_most=600)
    assert first.state == "promoted" and first.record.decision.kind == "synthesize"
    dropped = first.record.need_curated().report.dropped
    assert dropped["contaminated-exact"] > 0 and dropped["contaminated-near"] > 0
    held = {question_key(question) for question in room.services.held_out.never_trained_on()}
    assert not taught(room, first.round_id) & held


def test_a_question_that_a_version_was_trained_on_is_refused(tmp_path: Path) -> None:
    """It was asked for the first time after a round had taught it (the teacher wrote it)."""
    room = loop_of(tmp_path)
    first = room.serve_until(rounds=1, at_most=600)
    learnt = read_dataset(room.services.round_dir(first.round_id) / "dataset.jsonl")[0].prompt
    item = HeldOutItem(
        item_id="late", question=f" {learnt} ", answer="1", skills=("gcd",), stratum="skill:gcd"
    )
    room.reserve(item)
    counted = room.workers.monitor.decider.held_out.counts()["gcd"]
    versions = HeldOutStore(room.services.store, room.services.student)
    assert room.workers.monitor.reserve.next_version(2_000) is None
    assert room.workers.monitor.decider.held_out.counts()["gcd"] == counted - 1
    assert "late" not in {known.item.item_id for known in versions.reserved()}
    latest = room.services.held_out.latest()
    assert room.workers.monitor.reserve.next_version(2_000) == latest.version
    shutil.rmtree(room.services.round_dir(first.round_id))  # what was taught cannot be read
    shutil.rmtree(room.root / "mlartifacts")
    room.reserve(item.model_copy(update={"item_id": "later"}))
    assert room.workers.monitor.reserve.next_version(2_000) == latest.version
    assert room.services.held_out.latest() == latest


class NewForm(ScriptedLoop):
    """From the 300th answer on, users ask for "gcd" in a form that nobody wrote held-out questions in."""

    def answer(self, version: int, question: str) -> str:
        number = int(question.split()[-1].strip("?"))
        if question.startswith("user: gcd") and number >= 300 and version == 1:
            return answer_of(question) if number % 3 == 0 else "no idea"
        return super().answer(version, question)


@pytest.mark.parametrize("share", [SHARE, 0.0])
def test_a_skill_that_drifted_is_taught_once_it_has_questions_of_what_is_asked_now(
    tmp_path: Path, share: float
) -> None:
    """Held-out questions of before the drift kept the gate closed for every round that would mend it."""
    items = [*held_out("add", 100, "skill:add"), *held_out("gcd", 100, "skill:gcd")]
    chosen = [*pool("gcd", 60), *pool("add", 60)]
    room = NewForm(tmp_path, config(share), lambda version, skill: 0.95, chosen, items, SHARES)
    room.serve(300)
    assert not room.services.held_out.reserved()
    first = room.serve_until(rounds=1, at_most=1_200)
    if not share:
        assert first.state == "rejected"
        return
    assert first.state == "promoted" and first.record.skills == ("gcd",) and first.record.opened.held_out == 1
    assert 20 <= len(grown(room, 1)) <= 60 and {item.skills for item in grown(room, 1)} == {("gcd",)}
    assert set(items) < set(room.services.held_out.of(1))
    (gain,) = [row for row in first.record.need_judged().verdict.table if row.kind == "targets"]
    assert gain.items == 100 + len(grown(room, 1)) and gain.challenger - gain.champion > 0.05


@pytest.mark.parametrize(
    ("strata", "skills", "stratum"),
    [
        (("skill:add", "mix"), ("add",), "skill:add"),
        (("skill:add", "mix", "mix", "other"), ("gcd",), "mix"),
        (("exam", "exam", "ood", "ood", "ood"), ("gcd", "add"), "exam"),
        (("skill:add",), ("gcd",), "skill:gcd"),
        (("skill:add",), ("gcd", "add"), None),
    ],
)
def test_a_new_question_joins_a_set_that_the_gate_tests_already(
    tmp_path: Path, strata: Sequence[str], skills: Sequence[str], stratum: str | None
) -> None:
    base = [
        HeldOutItem(item_id=str(at), question=str(at), answer="1", skills=("add",), stratum=name)
        for at, name in enumerate(strata)
    ]
    store = StateStore(f"sqlite:///{tmp_path / 'state.db'}")
    assert HeldOutSet(load(None), store, base).stratum(skills) == stratum


def test_the_share_is_a_share_of_the_questions_and_a_question_stays_in_it() -> None:
    asked = [ask("user", "gcd", number) for number in range(4_000)]
    chosen = [question for question in asked if falls_into(question, 0.1)]
    assert 320 < len(chosen) < 480 and all(falls_into(question, 0.2) for question in chosen)
    assert all(falls_into(f"  {question.upper()} ", 0.1) for question in chosen[:20])
    with pytest.raises(ConfigError, match="min_agreement 4 exceeds solutions 3"):
        load(None, overrides={"heldout": {"min_agreement": 4}})
