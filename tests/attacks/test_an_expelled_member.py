"""Attacks: a broker that stood still has expelled a member, which comes back and claims what it had; and
members that are polled so seldom that every join ends between two polls."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from types import SimpleNamespace

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # kafka-python 3.0.12 uses a deprecated function of importlib
    import pytest
    from kafka import TopicPartition
    from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor

    from streams.kafka.log import KafkaLog
    from streams.kafka.seams import claim_what_is_held, keep_joins
from streams.kafka.settings import KafkaSettings
from streams.testing.broker import HOW_TO_GET_ONE, KafkaServer, find_home
from streams.topics import TopicSpec


def claimed(held: list[int], last: list[int], mended: bool = True) -> list[int]:
    """What a consumer claims that holds some partitions and was assigned others last."""
    assignor = CooperativeStickyAssignor()
    assignor.member_assignment = [TopicPartition("t", number) for number in last]
    subscription = SimpleNamespace(assigned_partitions=lambda: {TopicPartition("t", n) for n in held})
    coordinator = SimpleNamespace(_assignors={assignor.name: assignor})
    consumer = SimpleNamespace(_subscription=subscription, _coordinator=coordinator)
    if mended:
        assert claim_what_is_held(consumer) is consumer
    return [number for owned in assignor.metadata({"t"}).owned_partitions for number in owned.partitions]


def test_a_member_claims_what_it_holds_and_not_what_it_had() -> None:
    """Two members claimed the same partitions, and one of these was left with neither."""
    assert claimed([], [0, 1, 2], mended=False) == [0, 1, 2], "kafka-python has changed: see the seam"
    assert claimed([], [0, 1, 2]) == []
    assert claimed([3, 1], [0, 1, 2]) == [1, 3]


def test_a_client_with_other_internals_is_left_as_it_is() -> None:
    other = SimpleNamespace()
    assert claim_what_is_held(other) is other and keep_joins(other) is other


@pytest.mark.kafka
@pytest.mark.slow
@pytest.mark.skipif(find_home() is None, reason=f"no Kafka: {HOW_TO_GET_ONE}")
def test_members_that_are_polled_seldom_come_to_rest(record_property: Callable[[str, object], None]) -> None:
    """Each poll dropped the join that had ended since the last one, and began a new rebalance: more than a
    hundred in three minutes, in which nobody got a record."""
    os.environ.setdefault("JAVA_TOOL_OPTIONS", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")
    with KafkaServer() as server:
        settings = KafkaSettings(bootstrap_servers=server.bootstrap, start_timeout_s=60, session_timeout_s=6)
        with KafkaLog(settings) as one, KafkaLog(settings) as other:
            one.create_topics([TopicSpec("t", 8, -1)])
            members = [log.consumer("g", ["t"]) for log in (one, other)]
            polls = 0
            while sorted(len(member.assignment()) for member in members) != [4, 4] and polls < 60:
                for member in members:
                    member.poll(10, 0.01)
                    time.sleep(0.3)  # a join ends here, not in the poll
                polls += 1
            for member in members:
                member.close()
    record_property("measured", f"at rest after {polls} polls")
    assert polls < 30
