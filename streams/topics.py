"""The topics, with the settings they are created with. Nothing is auto-created."""

from __future__ import annotations

from dataclasses import dataclass

from streams.events import EVENT_TYPES

MONITOR_GROUP = "monitor"
"""The consumer group that reads answers and diagnoses into the profile."""
DAY_MS = 24 * 3600 * 1000
# Events may have 1 MiB. Topics take more, so that a larger record becomes a dead letter instead of an error
# at its producer.
MAX_LETTER_BYTES = 8 * 1_048_576


@dataclass(frozen=True)
class TopicSpec:
    """One topic. `retention_ms` -1 keeps indefinitely; compacted topics keep the last record of each key.

    `max_bytes` is the largest record that the topic takes.
    """

    name: str
    partitions: int
    retention_ms: int
    compacted: bool = False
    max_bytes: int = 2 * MAX_LETTER_BYTES


def dead_letter_topic(topic: str) -> str:
    """Where records of `topic` go that can never be processed."""
    return f"{topic}.dlq"


# diagnoses are kept indefinitely: the profile is rebuilt from them.
TOPICS: tuple[TopicSpec, ...] = (
    TopicSpec("student-outputs", partitions=8, retention_ms=30 * DAY_MS),
    TopicSpec("feedback", partitions=1, retention_ms=30 * DAY_MS),
    TopicSpec("diagnoses", partitions=8, retention_ms=-1),
    TopicSpec("rounds", partitions=1, retention_ms=-1),
    TopicSpec("deployments", partitions=1, retention_ms=-1),
    TopicSpec("alerts", partitions=1, retention_ms=90 * DAY_MS),
    TopicSpec(dead_letter_topic("student-outputs"), partitions=1, retention_ms=90 * DAY_MS),
    TopicSpec(dead_letter_topic("diagnoses"), partitions=1, retention_ms=90 * DAY_MS),
)

if {event.TOPIC for event in EVENT_TYPES} - {spec.name for spec in TOPICS}:
    raise AssertionError("an event type has no topic")
