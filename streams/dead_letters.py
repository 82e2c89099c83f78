"""Dead letters: records that can never be processed, kept with the reason on `<topic>.dlq` (precedents: KIP-298, KIP-1034)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from streams.log import EventLog, Outgoing, Partition, Record
from streams.topics import dead_letter_topic

PREFIX = "dlq_"
_MESSAGE_CHARS = 2000


@dataclass(frozen=True)
class DeadLetter:
    """One dead letter as read back: the original record's bytes and why it was parked."""

    position: Record
    reason: str
    message: str
    topic: str
    partition: int
    offset: int
    attempts: int

    @property
    def letter_id(self) -> str:
        """Where the original stands; unique per poison record."""
        return f"{self.topic}/{self.partition}/{self.offset}"


def dead_letter(record: Record, reason: str, message: str, attempts: int) -> Outgoing:
    """The dead letter of a record: raw bytes, key and headers, plus headers that say what went wrong."""
    extra = {
        "reason": reason,
        "message": message[:_MESSAGE_CHARS],
        "topic": record.partition.topic,
        "partition": str(record.partition.number),
        "offset": str(record.offset),
        "attempts": str(attempts),
    }
    headers = tuple((PREFIX + name, text.encode(errors="replace")) for name, text in extra.items())
    return Outgoing(dead_letter_topic(record.partition.topic), record.key, record.value, record.headers + headers)


def parse(record: Record) -> DeadLetter:
    """Read a record of a dead-letter topic."""
    found = {name[len(PREFIX) :]: value.decode(errors="replace") for name, value in record.headers if name.startswith(PREFIX)}
    return DeadLetter(
        position=record,
        reason=found.get("reason", "unknown"),
        message=found.get("message", ""),
        topic=found.get("topic", record.partition.topic.removesuffix(".dlq")),
        partition=int(found.get("partition", -1)),
        offset=int(found.get("offset", -1)),
        attempts=int(found.get("attempts", 0)),
    )


def redrive(letter: DeadLetter) -> Outgoing:
    """The original record again, for its own topic. Its event id was never marked as known, so it is processed anew."""
    record = letter.position
    headers = tuple((name, value) for name, value in record.headers if not name.startswith(PREFIX))
    return Outgoing(letter.topic, record.key, record.value, headers)


def read_all(log: EventLog, topic: str, group: str, poll_s: float = 5.0) -> Iterator[Record]:
    """Every record that is in `topic` now, from the beginning, in order within a partition.

    `group` is only a reader's name: its offsets are not kept. Raises `TopicMissing`, `LogUnavailable`.
    """
    ends = {partition: end for partition, end in log.end_offsets(topic).items() if end}
    consumer = log.consumer(group, [topic])
    try:
        done: dict[Partition, int] = {}
        started = False
        while any(done.get(partition, 0) < end for partition, end in ends.items()):
            records = consumer.poll(1000, poll_s)
            if not started and consumer.assignment():
                consumer.seek({partition: 0 for partition in consumer.assignment()})
                started = True
                continue
            for record in records:
                done[record.partition] = record.offset + 1
                if record.offset < ends.get(record.partition, 0):
                    yield record
    finally:
        consumer.close()
