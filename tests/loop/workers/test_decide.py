"""The policy's shell: alerts that are sent once, and money on one clock."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from agent.budget import Usage
from agent.catalog import SkillCatalog, SkillMap
from agent.drift import threshold
from agent.items import HeldOutItem
from agent.profile import Observation, bucket_of, fold
from graphs.teach.graph import build_teach, teach
from loop.config import Config, load
from loop.workers.decide import Decider
from loop.workers.record import parse_record
from streams.clock import HandClock
from streams.codec import Codec
from streams.events import Alert, Deployed
from streams.log import Partition, Record
from streams.state import tables
from streams.state.ledger import entry_row
from streams.state.rounds import RoundStore
from streams.state.store import Batch, StateStore
from streams.state.waits import waits_since

NOW = datetime(2026, 11, 25, 10, tzinfo=UTC)
FIRST = bucket_of(NOW.timestamp(), 60)
GRAPH = build_teach()
P0 = Partition("student-outputs", 0)


class TwoSkills:
    """As much of a task as the policy looks at."""

    catalog = SkillCatalog.of(("add", ""), ("gcd", ""), ("max", ""))
    held_out = tuple(
        HeldOutItem(item_id=f"h{n}", question=f"h{n}", answer="", skills=("add", "gcd", "max"), stratum="s")
        for n in range(60)
    )
    skill_map = SkillMap((f"q{n}", (("add", "gcd", "max")[n % 3],)) for n in range(300))


def decider(store: StateStore, clock: HandClock, config: Config) -> Decider:
    task: Any = TwoSkills()
    return Decider(config, store, RoundStore(store, parse_record, clock), task, clock)


@pytest.fixture
def store(tmp_path: Path) -> StateStore:
    made = StateStore(f"sqlite:///{tmp_path / 'state.db'}")
    event = Deployed(event_id="d1", occurred_at=NOW, student="demo", version=1, action="promote")
    RoundStore(made, parse_record, HandClock(NOW)).set_route("demo", 1, None, event)
    return made


def commit(store: StateStore, seen: Sequence[Observation]) -> None:
    at, newest = store.offsets("g").get(P0, 0), max(o.bucket for o in seen)
    marks = {("demo", seen[0].version): (len(seen), newest * 60.0 + 59)}
    store.commit(
        Batch(group="g", expected={P0: at}, offsets={P0: at + 1}, buckets=fold(seen), watermarks=marks)
    )


def answers(skill: str, buckets: range, rate: float, count: int = 5) -> list[Observation]:
    rng = random.Random(f"{skill}/{buckets}")
    return [
        Observation("demo", 1, FIRST + b, (skill,), (skill,) if rng.random() < rate else ())
        for b in buckets
        for _ in range(count)
    ]


def alerts(store: StateStore) -> list[Alert]:
    """What waits in the outbox."""
    sent = [record for _, record in store.pending(1_000)]
    records = [Record(Partition(one.topic, 0), 0, one.key, one.value, one.headers) for one in sent]
    return [event for record in records if isinstance(event := Codec().decode(record), Alert)]


def test_an_alert_is_sent_once_and_says_the_threshold_that_was_used(store: StateStore) -> None:
    """8.2 was used and 11.9 published; a new harmless skill sent the alert again."""
    config, clock = load(None), HandClock(NOW)
    commit(store, [*answers("add", range(80), 0.3), *answers("gcd", range(40), 0.2)])
    commit(store, answers("gcd", range(40, 80), 0.8))
    teach(GRAPH, decider(store, clock, config))
    (alert,) = [one for one in alerts(store) if one.kind == "miss rate"]
    assert alert.skill == "gcd" and alert.statistic > alert.threshold == threshold(config.drift, 3)
    commit(store, [*answers("max", range(20, 90), 0.1), *answers("gcd", range(80, 90), 0.8)])
    again = decider(store, clock, config)
    assert (standing := teach(GRAPH, again)) is not None and set(standing.alarms) == {"gcd"}
    teach(GRAPH, again)
    assert [one for one in alerts(store) if one.kind == "miss rate"] == [alert]


@pytest.mark.parametrize("seen_before", [True, False])
def test_an_alarm_that_stands_over_a_promotion_is_sent_once(store: StateStore, seen_before: bool) -> None:
    """Also when the answers that raised it were counted after the switch."""
    config, clock = load(None), HandClock(NOW)
    commit(store, [*answers("gcd", range(40), 0.2), *answers("gcd", range(40, 60), 0.8)])
    if seen_before:
        teach(GRAPH, decider(store, clock, config))
    deployed = Deployed(event_id="d2", occurred_at=NOW, student="demo", version=2, action="promote")
    RoundStore(store, parse_record, clock).set_route("demo", 2, None, deployed)
    commit(store, [replace(answer, version=2) for answer in answers("gcd", range(60, 80), 0.8)])
    for _ in range(2):
        assert (standing := teach(GRAPH, decider(store, clock, config))) is not None
    assert standing.version == 2 and set(standing.alarms) == {"gcd"}
    sent = [one.student_version for one in alerts(store) if one.kind == "miss rate"]
    assert sent == [1 if seen_before else 2]


def test_a_bucket_outside_of_time_does_not_stop_the_policy(store: StateStore) -> None:
    """`bucket = -2**53` in a store of before made every step raise OSError."""
    old = [Observation("demo", 1, -(2**53), ("add",), ("add",))] * 100
    commit(store, [*answers("add", range(40), 0.1), *old])
    assert teach(GRAPH, decider(store, HandClock(NOW), load(None))) is not None


@pytest.mark.parametrize(("late", "spent"), [(timedelta(0), True), (timedelta(days=1), False)])
def test_the_policy_sees_the_money_of_the_day_on_which_it_was_booked(
    store: StateStore, late: timedelta, spent: bool
) -> None:
    """Answers of yesterday, judged today: 20 of 20 USD were spent and the policy saw 20 left."""
    config = load(None, overrides={"budget": {"usd_per_day": 20.0}})
    commit(store, answers("add", range(-1_440, -1_420), 0.5))
    row = entry_row("e", "demo", None, NOW.date().isoformat(), "diagnose", Usage(usd=20.0))
    with store.transaction() as connection:
        store.insert_new(tables.ledger, [row], connection)
    standing = decider(store, HandClock(NOW + late), config).standing()
    assert standing is not None
    assert any("today's money is spent" in reason for reason in standing.decision.reasons) == spent


def test_a_wait_for_evidence_ends_though_every_look_is_another_process(store: StateStore) -> None:
    """`worker monitor --once`: each began to wait anew. Who only looks writes nothing."""
    seen = [Observation("demo", 1, FIRST, ("add",))] * 760
    seen += [Observation("demo", 1, FIRST, ("gcd",), ("gcd",))] * 24
    commit(store, [*seen, *[Observation("demo", 1, FIRST, ("max",), ("max",))] * 15])
    config, clock = load(None), HandClock(NOW)
    assert (looked := decider(store, clock, config).standing()) is not None
    assert looked.decision.waits_since == 799 and waits_since(store, "demo", 1) is None
    kinds = []
    while len(kinds) < 10 and (not kinds or kinds[-1] == "wait"):
        standing = teach(GRAPH, decider(store, clock, config))
        assert standing is not None
        kinds.append(standing.decision.kind)
        assert waits_since(store, "demo", 1) == 799
        commit(store, [Observation("demo", 1, FIRST, ("add",))] * 100)
    assert kinds == ["wait"] * 4 + ["synthesize"]
