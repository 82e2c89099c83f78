"""Attacks: a broker that stood still has expelled a member, which comes back and claims what it had."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # kafka-python 3.0.12 uses a deprecated function of importlib
    from kafka import TopicPartition
    from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor

    from streams.kafka.seams import claim_what_is_held


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
    assert claim_what_is_held(other) is other
