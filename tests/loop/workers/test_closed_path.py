"""Rounds that must not be promoted, through the real workers and with the gate's own defaults: the champion
stays, and what the policy does next is not the same again."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest

from loop.config import Config, load
from loop.loading import ConfigError
from loop.workers.judge import champion_evaluation
from loop.workers.record import LoopRound
from streams.codec import Codec
from streams.events import Deployed
from tests.loop.scripted import (
    CANDIDATE,
    Knows,
    ScriptedLoop,
    answer_of,
    held_out,
    pool,
    skill_of,
)
from training.gate import GateSettings

KNOWN = {"add": 0.97, "gcd": 0.3, "max": 0.9}


def config(**policy: Any) -> Config:
    small = {
        "examples_per_skill": 40,
        "min_pool": 30,
        "base_steps": 20,
        "min_steps": 20,
        "min_answers": 300,
    } | policy
    made = load(
        None, overrides={"policy": small, "monitor": {"filters": ["gold"]}, "strategy": {"rewrite": False}}
    )
    assert made.gate == GateSettings()
    return made


def loop_of(root: Path, knows: Knows, **policy: Any) -> ScriptedLoop:
    items = [*pool("gcd", 60), *pool("add", 60)]
    exam = [*held_out("add", 300, "skill:add"), *held_out("gcd", 150, "skill:gcd")]
    return ScriptedLoop(root, config(**policy), knows, items, exam)


def useless(version: int, skill: str) -> float:
    """Training changes nothing."""
    return KNOWN[skill]


def harmful(version: int, skill: str) -> float:
    """The target gains 60 points, its neighbour loses 20."""
    taught = {"add": 0.77, "gcd": 0.9, "max": 0.9}
    return KNOWN[skill] if version == 1 else taught[skill]


def good(version: int, skill: str) -> float:
    return KNOWN[skill] if version == 1 or skill != "gcd" else 0.95


def other_weights(version: int, skill: str) -> float:
    """What is judged is good; what is served under the new version's number is the base."""
    return good(version, skill) if version == CANDIDATE else KNOWN[skill]


def test_a_good_round_is_promoted(tmp_path: Path) -> None:
    """The closed paths below are not closed for another reason."""
    room = loop_of(tmp_path, good)
    first = room.serve_until(rounds=1, at_most=1_000)
    assert first.state == "promoted" and room.version == 2, first.record.judged


class Wavering(ScriptedLoop):
    """Right in a share of its answers to each question."""

    def drawn(self, version: int, question: str, sample: int) -> str:
        right = Random(f"{question} {sample}").random() < self.knows(version, skill_of(question))
        return answer_of(question) if right else "no idea"


def test_with_samples_an_item_counts_by_its_share_of_right_answers(tmp_path: Path) -> None:
    sampled = config()
    sampled = sampled.model_copy(update={"gate": GateSettings(samples=4, temperature=0.7)})
    items = [*pool("gcd", 60), *pool("add", 60)]
    exam = [*held_out("add", 300, "skill:add"), *held_out("gcd", 150, "skill:gcd")]
    room = Wavering(tmp_path, sampled, good, items, exam)
    first = room.serve_until(rounds=1, at_most=1_000)
    measured = champion_evaluation(room.services, 2, room.services.held_out.of(0)).evaluation
    assert first.state == "promoted"
    rates = [outcome.correct for outcome in measured.outcomes if outcome.stratum == "skill:gcd"]
    assert set(rates) <= {0, 0.25, 0.5, 0.75, 1} and len(set(rates)) > 1
    assert 0.9 < measured.accuracy_by_skill()["gcd"] < 1


def test_samples_that_are_all_the_same_are_refused() -> None:
    with pytest.raises(ConfigError, match="4 samples at temperature 0 are all the same"):
        load(None, overrides={"gate": {"samples": 4}})


def test_a_round_that_teaches_nothing_is_rejected_and_the_skill_put_aside(tmp_path: Path) -> None:
    room = loop_of(tmp_path, useless, cooldown_answers=100)
    first = room.serve_until(rounds=1, at_most=1_000)
    assert_rejected(room, first, "no proven gain")
    second = room.serve_until(rounds=2, at_most=1_000)
    assert [round_.record.decision.kind for round_ in room.rounds] == ["select", "synthesize"]
    assert_rejected(room, second, "no proven gain")
    room.serve(600)
    waits = room.workers.monitor.decider.standing()
    assert waits is not None and waits.decision.kind == "wait" and len(room.rounds) == 2
    assert any(f"ceiling: synthesis round {second.round_id} gained" in why for why in waits.decision.reasons)


def test_with_reinforce_a_skill_that_supervision_does_not_lift_is_taught_by_grpo_once(tmp_path: Path) -> None:
    room = loop_of(tmp_path, useless, cooldown_answers=100, reinforce=True, reinforced_steps=7)
    third = room.serve_until(rounds=3, at_most=3_000)
    assert_rejected(room, third, "no proven gain")
    (job,) = room.reinforcer.jobs
    assert job.steps == 7 and [len(room.trainer.jobs), third.record.decision.reinforced] == [2, True]
    assert job.right is not None and job.right("way 1\nthe answer is 4", "the answer is 4") is True
    room.serve(900)
    waits = room.workers.monitor.decider.standing()
    assert waits is not None and waits.decision.kind == "wait" and len(room.rounds) == 3
    assert any(f"ceiling: reinforced round {third.round_id}" in why for why in waits.decision.reasons)


def test_a_round_that_harms_is_rejected_and_never_repeated_as_it_was(tmp_path: Path) -> None:
    room = loop_of(tmp_path, harmful, cooldown_answers=100)
    first = room.serve_until(rounds=1, at_most=1_000)
    assert_rejected(room, first, "it lost")
    waits = room.workers.monitor.decider.standing()
    assert waits is not None and waits.decision.kind == "wait"
    assert any(f"answers since round {first.round_id} (rejected)" in why for why in waits.decision.reasons)
    room.serve_until(rounds=3, at_most=2_000)
    decisions = [round_.record.decision for round_ in room.rounds]
    assert [decision.kind for decision in decisions] == ["select", "synthesize", "synthesize"]
    assert decisions[2].steps < decisions[1].steps == decisions[0].steps
    for round_ in room.rounds:
        assert_rejected(room, round_, "it lost")
    deployed = [Codec().decode(record) for record in room.log.read(Deployed.TOPIC)]
    assert [event.version for event in deployed if isinstance(event, Deployed)] == [1]


def assert_rejected(room: ScriptedLoop, round_: LoopRound, reason: str) -> None:
    """By the gate, for this reason; the champion is served as before."""
    assert round_.state == "rejected" and round_.record.judged is not None
    verdict = round_.record.judged.verdict
    assert not verdict.promote and any(reason in told for told in verdict.reasons), verdict.reasons
    registry = room.services.registry
    assert room.version == registry.champion().version == 1 and registry.alias("previous") is None


def test_weights_that_are_not_those_that_were_judged_are_not_served(tmp_path: Path) -> None:
    """The gate is open, the proof fails: three attempts, then the round ends; three such rounds, and a person
    is asked for."""
    room = loop_of(tmp_path, other_weights, cooldown_answers=100)
    first = room.serve_until(rounds=1, at_most=1_000)
    assert first.state == "failed" and first.record.judged is not None and first.record.ended is not None
    assert first.record.judged.verdict.promote
    assert "after 3 failures" in first.record.ended.error and "ProofFailed" in first.record.ended.error
    registry = room.services.registry
    assert room.version == registry.champion().version == 1 and registry.alias("previous") is None
    waits = room.workers.monitor.decider.standing()
    assert waits is not None and waits.decision.kind == "wait"
    assert any(f"answers since round {first.round_id} (failed)" in why for why in waits.decision.reasons)
    room.serve_until(rounds=3, at_most=2_000)
    room.serve(900)
    assert [round_.state for round_ in room.rounds] == ["failed"] * 3
    last = room.workers.monitor.decider.standing()
    assert last is not None and last.decision.kind == "wait"
    (why,) = [told for told in last.decision.reasons if told.startswith("gcd: ")]
    assert "3 rounds on it failed" in why and "ProofFailed" in why and "a person must mend the cause" in why
