"""Dead letters: records that can never be processed, kept with the reason on `<topic>.dlq` (precedents:
KIP-298, KIP-1034)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from streams.log import EventLog, Headers, Outgoing, Record
from streams.topics import MAX_LETTER_BYTES, dead_letter_topic

PREFIX = "dlq_"
OUTBOX_ID = "outbox_id"
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
    cut_from: int = 0

    @property
    def letter_id(self) -> str:
        """Where the original stands; unique per poison record."""
        return f"{self.topic}/{self.partition}/{self.offset}"


def dead_letter(record: Record, reason: str, message: str, attempts: int) -> Outgoing:
    """The dead letter of a record: raw bytes, key and headers, plus headers that say what went wrong.

    A value over `MAX_LETTER_BYTES` is cut to that, with its size in a header `dlq_cut_from`: the topic must
    be able to take it.
    """
    extra = {
        "reason": reason,
        "message": message[:_MESSAGE_CHARS],
        "topic": record.partition.topic,
        "partition": str(record.partition.number),
        "offset": str(record.offset),
        "attempts": str(attempts),
    }
    if len(record.value) > MAX_LETTER_BYTES:
        extra["cut_from"] = str(len(record.value))
    headers = tuple((PREFIX + name, text.encode(errors="replace")) for name, text in extra.items())
    value = record.value[:MAX_LETTER_BYTES]
    return Outgoing(
        dead_letter_topic(record.partition.topic), record.key, value, _original_headers(record) + headers
    )


def _original_headers(record: Record) -> Headers:
    return tuple(
        (name, value) for name, value in record.headers if not name.startswith(PREFIX) and name != OUTBOX_ID
    )


def parse(record: Record) -> DeadLetter:
    """Read a record of a dead-letter topic."""
    found = {
        name[len(PREFIX) :]: value.decode(errors="replace")
        for name, value in record.headers
        if name.startswith(PREFIX)
    }
    return DeadLetter(
        position=record,
        reason=found.get("reason", "unknown"),
        message=found.get("message", ""),
        topic=found.get("topic", record.partition.topic.removesuffix(".dlq")),
        partition=_number(found.get("partition"), -1),
        offset=_number(found.get("offset"), -1),
        attempts=_number(found.get("attempts"), 0),
        cut_from=_number(found.get("cut_from"), 0),
    )


def redrive(letter: DeadLetter) -> Outgoing:
    """The original record again, for its own topic. Its event id was never marked as known, so it is
    processed anew.

    Raises `ValueError` for a letter that was cut: its end is gone.
    """
    record = letter.position
    if letter.cut_from:
        raise ValueError(
            f"dead letter {letter.letter_id} keeps only {len(record.value)} of {letter.cut_from} bytes: "
            "it cannot be redriven"
        )
    return Outgoing(letter.topic, record.key, record.value, _original_headers(record))


def _number(text: str | None, default: int) -> int:
    try:
        return default if text is None else int(text)
    except ValueError:
        return default


def read_all(log: EventLog, topic: str) -> Iterator[DeadLetter]:
    """The dead letters of `topic` (the original's name), oldest first within a partition. Raises
    `TopicMissing`, `LogUnavailable`."""
    return (parse(record) for record in log.read(dead_letter_topic(topic)))
