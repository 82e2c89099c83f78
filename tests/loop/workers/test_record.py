"""Records of rounds: parts, what events carry of them, and records of the version before."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from agent.decision import Decision, SkillTarget
from agent.posterior import SkillEstimate
from agent.profile import Counts
from loop.workers.record import Curated, Ended, Judged, Opened, RoundParts, Trained, announced, parse_record

DECISION: dict[str, Any] = {
    "kind": "select", "skills": [{"skill": "add", "weight": 1.0, "examples": 2, "strategy": "select"}],
    "examples": 2, "steps": 24, "reasons": ["select: add", "add: missing"],
}  # fmt: skip
ROW: dict[str, Any] = {
    "name": "skill:x", "kind": "reported", "items": 9, "champion": 0.5, "challenger": 0.6, "gained": 2,
    "lost": 1, "p_value": 0.5, "lower_bound": -0.1, "passed": None,
}  # fmt: skip
PLANNED: dict[str, Any] = {
    "decision": DECISION, "champion": 1, "decided_at": "2026-01-01T00:13:19+00:00", "decided_at_answers": 800,
    "profile": [{"skill": "add", "needed": 70.9, "missing": 57.9, "raw": [71, 58], "mean": 0.8, "low": 0.7,
                 "high": 0.9, "share": 0.1, "priority": 0.08}],
}  # fmt: skip
CURATED: dict[str, Any] = {
    "manifest": {"sha256": "d", "examples": 4, "per_strategy": {"replay": 2, "select": 2},
                 "per_skill": {"add": 2}},
    "curation": {"requested": {"add": 2}, "accepted": {"add": 2}, "replay": 2, "dropped": {},
                 "usage": {"calls": 1, "prompt_tokens": 2, "completion_tokens": 3, "usd": 0.0}},
    "used": ["pool-1", "pool-2"],
}  # fmt: skip
TRAINED: dict[str, Any] = {"adapter_sha256": "a", "tokens": 70, "loss": 0.25, "trained_from": 1}
JUDGED: dict[str, Any] = {
    "version": 2, "verdict": {"promote": True, "reasons": ["gained"], "table": [ROW]}, "gains": {"add": 0.5},
    "probe": "p", "run_id": "run",
}  # fmt: skip
FLAT = {**PLANNED, **CURATED, **TRAINED, **JUDGED, "ended_at_answers": 900}
"""A promoted round as the version before wrote it."""


def test_an_old_record_is_read() -> None:
    record = parse_record(json.dumps(FLAT))
    target = SkillTarget(skill="add", weight=1.0, examples=2, strategy="select")
    assert record.decision == Decision.model_validate(DECISION) and record.decision.skills == (target,)
    estimate = SkillEstimate("add", 70.9, 57.9, Counts(71, 58), 0.8, 0.7, 0.9, 0.1, 0.08)
    at = datetime(2026, 1, 1, 0, 13, 19, tzinfo=UTC)
    assert record.opened == Opened(champion=1, at=at, answers=800, profile=(estimate,))
    assert record.need_curated().used == ("pool-1", "pool-2") and record.need_curated().manifest.examples == 4
    assert record.trained == Trained(adapter_sha256="a", tokens=70, loss=0.25, parent=1, directory="sft")
    assert record.need_judged().gains == {"add": 0.5} and record.need_judged().verdict.table[0].passed is None
    assert record.ended == Ended(answers=900)
    assert parse_record(record.model_dump_json()) == record


@pytest.mark.parametrize("steps", range(4))
def test_an_old_round_under_way_has_the_parts_of_its_steps(steps: int) -> None:
    flat = {
        key: value for part in (PLANNED, CURATED, TRAINED, JUDGED)[: steps + 1] for key, value in part.items()
    }
    record = parse_record(json.dumps(flat))
    filled = [part is not None for part in (record.curated, record.trained, record.judged, record.ended)]
    assert filled == [number < steps for number in range(4)]


def test_an_old_failed_round_keeps_its_reason() -> None:
    record = parse_record(json.dumps({**PLANNED, "error": "EmptyPool: none", "ended_at_answers": 850}))
    assert record.ended == Ended(answers=850, error="EmptyPool: none") and record.curated is None


def test_a_part_that_a_state_promises_is_missed() -> None:
    with pytest.raises(LookupError, match="'trained'"):
        parse_record(json.dumps(PLANNED)).need_trained()


def test_each_part_fills_its_own_field_and_events_carry_no_long_lists() -> None:
    whole = parse_record(json.dumps(FLAT))
    record = RoundParts(decision=whole.decision, opened=whole.opened)
    for part in (whole.need_curated(), whole.need_trained(), whole.need_judged(), Ended(answers=900)):
        record = record.plus(part)
    assert record == whole
    assert set(announced(whole.decision)) == {"decision"}
    assert set(announced(whole.need_curated())) == set(Curated.model_fields) - {"used"}
    assert set(announced(whole.need_trained())) == set(Trained.model_fields) - {"directory", "curve_sha256"}
    assert set(announced(whole.need_judged())) == set(Judged.model_fields)


@pytest.mark.parametrize("text", ["{damaged", "[]", "7", '{"schema_version": 3}', '{"decision": {}}'])
def test_what_is_no_record_is_refused(text: str) -> None:
    with pytest.raises((ValueError, LookupError, TypeError)):
        parse_record(text)
