"""The topics, with the settings they are created with. Nothing is auto-created."""

from __future__ import annotations

from dataclasses import dataclass

from streams.events import EVENT_TYPES

DAY_MS = 24 * 3600 * 1000


@dataclass(frozen=True)
class TopicSpec:
    """One topic. `retention_ms` -1 keeps for ever; compacted topics keep the last record of each key."""

    name: str
    partitions: int
    retention_ms: int
    compacted: bool = False


def dead_letter_topic(topic: str) -> str:
    """Where records of `topic` go that can never be processed."""
    return f"{topic}.dlq"


# diagnoses are kept for ever: the profile is rebuilt from them.
TOPICS: tuple[TopicSpec, ...] = (
    TopicSpec("student-outputs", partitions=8, retention_ms=30 * DAY_MS),
    TopicSpec("diagnoses", partitions=8, retention_ms=-1),
    TopicSpec("rounds", partitions=1, retention_ms=-1),
    TopicSpec("deployments", partitions=1, retention_ms=-1),
    TopicSpec("alerts", partitions=1, retention_ms=90 * DAY_MS),
    TopicSpec(dead_letter_topic("student-outputs"), partitions=1, retention_ms=90 * DAY_MS),
)

if {event.TOPIC for event in EVENT_TYPES} - {spec.name for spec in TOPICS}:
    raise AssertionError("an event type has no topic")
