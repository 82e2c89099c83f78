"""Attacks: a topic made anew under a running worker, and records deleted before they were read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from streams import dead_letters
from streams.codec import encode
from streams.consume import ConsumeLoop, ConsumeSettings
from streams.continuity import Continuity, TopicChanged
from streams.local_log import LocalLog
from streams.log import Outgoing, Partition
from streams.memory_log import MemoryConsumer, MemoryLog
from streams.state.outbox import OutboxRelay
from streams.state.positions import TopicPositions
from streams.state.redrives import send_again
from streams.state.store import StateStore
from streams.testing.synthetic import diagnose, output

TOPIC = "student-outputs"


@pytest.fixture
def store(tmp_path: Path) -> StateStore:
    return StateStore(f"sqlite:///{tmp_path}/state.db")


def loop(log: Any, store: StateStore, check_topics_s: float = 0.0) -> ConsumeLoop:
    settings = ConsumeSettings("g", (TOPIC,), max_records=50, check_topics_s=check_topics_s)
    return ConsumeLoop(log, store, diagnose, settings)


def run(consuming: ConsumeLoop, close: bool = True) -> None:
    """Until nothing comes; then the member leaves its group, also after an error."""
    try:
        quiet = 0
        while quiet < 2:
            quiet = 0 if consuming.step() else quiet + 1
    finally:
        if close:
            consuming.close()


def answers(store: StateStore) -> int:
    return sum(counts[0] for key, counts in store.buckets().items() if key[2] == "*")


@pytest.mark.parametrize("anew", [20, 200])
def test_a_topic_made_anew_under_a_running_worker_stops_it(store: StateStore, anew: int) -> None:
    log = MemoryLog()
    log.append([encode(output(n)) for n in range(100)])
    consuming = loop(log, store)
    run(consuming, close=False)
    log.make_anew()
    log.append([encode(output(1000 + n)) for n in range(anew)])
    with pytest.raises(TopicChanged, match=r"made anew.*skillloop topics adopt student-outputs"):
        run(consuming)
    assert answers(store) == 100, "nothing of the new topic is counted under the old one's offsets"
    with pytest.raises(TopicChanged, match="made anew"):
        run(loop(log, store))
    gaps = Continuity(log, store, "g").adopt(TOPIC)
    assert gaps == TopicPositions(store).gaps("g") != []
    run(loop(log, store))
    assert answers(store) == 100 + anew


@pytest.mark.parametrize("hears_of_it", [True, False])
def test_a_worker_that_was_away_while_another_adopted_the_topic_reads_it_from_the_beginning(
    store: StateStore, monkeypatch: pytest.MonkeyPatch, hears_of_it: bool
) -> None:
    """It stayed behind the end of the new one, whose records nobody read (campaign, seed 338). It hears of
    the new one, or it asks now and then."""
    if not hears_of_it:
        monkeypatch.setattr(MemoryConsumer, "topic_ids", lambda _: {})
    log = MemoryLog()
    log.append([encode(output(n)) for n in range(100)])
    consuming = loop(log, store, check_topics_s=3600.0 if hears_of_it else 0.0)
    run(consuming, close=False)
    log.make_anew()
    log.append([encode(output(1000 + n)) for n in range(20)])
    Continuity(log, store, "g").adopt(TOPIC)
    assert not any(consuming.step() for _ in range(2)), "it notices, and takes its place again"
    run(consuming)
    assert answers(store) == 120


def test_what_was_in_partitions_that_nobody_had_begun_is_a_gap_too(store: StateStore) -> None:
    """64 answers were lost without a trace (campaign, seed 8)."""
    log = MemoryLog()
    log.append([encode(output(1))])
    run(loop(log, store))
    assert len(store.offsets("g")) == 1
    log.append([encode(output(n)) for n in range(2, 100)])  # nobody reads them
    log.make_anew()
    assert {gap.partition for gap in Continuity(log, store, "g").adopt(TOPIC)} == set(log.partitions([TOPIC]))
    log.append([encode(output(n)) for n in range(200, 210)])
    run(loop(log, store))
    assert answers(store) == 11


def test_records_deleted_before_they_were_read_stop_the_worker_and_are_counted(store: StateStore) -> None:
    log = MemoryLog()
    log.append([encode(output(n)) for n in range(100)])
    run(loop(log, store))
    log.append([encode(output(n)) for n in range(100, 300)])
    partition = max(log.partitions([TOPIC]), key=lambda p: len(log.records[p]))
    had = store.offsets("g")[partition]
    log.begins[partition] = had + 5
    with pytest.raises(TopicChanged, match="deleted 5 records"):
        run(loop(log, store))
    (gap,) = Continuity(log, store, "g").adopt(TOPIC)
    assert (gap.partition, gap.reads_on - gap.had) == (partition, 5)
    run(loop(log, store))
    assert answers(store) == 300 - 5


def test_a_running_worker_notices_what_is_deleted_ahead_of_it(store: StateStore) -> None:
    log = MemoryLog()
    log.append([encode(output(n)) for n in range(100)])
    consuming = loop(log, store)
    run(consuming, close=False)
    log.append([encode(output(n)) for n in range(100, 200)])
    partition = max(log.partitions([TOPIC]), key=lambda p: len(log.records[p]))
    log.begins[partition] = store.offsets("g")[partition] + 1
    with pytest.raises(TopicChanged, match="deleted 1 records"):
        run(consuming)


def test_a_log_file_that_was_replaced_is_noticed(tmp_path: Path, store: StateStore) -> None:
    for name in ("one.db", "two.db"):
        with LocalLog(tmp_path / name) as log:
            log.append([encode(output(n)) for n in range(30)])
            if name == "one.db":
                run(loop(log, store))
                OutboxRelay(store, log).step()
                assert log.topic_id(TOPIC) == log.topic_id("alerts")
            else:
                with pytest.raises(TopicChanged, match="made anew"):
                    run(loop(log, store))


def test_a_store_from_before_takes_the_topic_as_it_is(store: StateStore) -> None:
    log = MemoryLog()
    log.append([encode(output(1))])
    run(loop(log, store))
    assert TopicPositions(store).topic_ids("g") == {TOPIC: log.identity}
    assert Continuity(log, store, "other").adopt(TOPIC) == []
    assert log.begin_offsets(TOPIC)[Partition(TOPIC, 0)] == 0


def test_dead_letters_of_two_lives_of_a_topic_have_names_of_their_own(store: StateStore) -> None:
    """The second was taken for the first, sent again already, and stayed where it was."""
    log, letters = MemoryLog(), list[dead_letters.DeadLetter]()
    for name in ("one", "two"):
        log.append([Outgoing(TOPIC, b"k", name.encode())])
        run(loop(log, store))
        OutboxRelay(store, log).step()
        letters += dead_letters.latest(log, TOPIC).values()
        assert send_again(store, {letters[-1].letter_id: dead_letters.redrive(letters[-1])}) == 1
        log.make_anew()
        Continuity(log, store, "g").adopt(TOPIC)
    one, two = letters
    assert one.letter_id != two.letter_id and one.position.offset == two.position.offset
    of_before = replace(one, topic_id="")
    assert of_before.letter_id == one.letter_id.partition("@")[0] == f"{TOPIC}/{one.partition}/{one.offset}"
