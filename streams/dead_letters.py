"""Dead letters: records that can never be processed, kept with the reason on `<topic>.dlq` (precedents:
KIP-298, KIP-1034).

A letter is named by the original record's place and the topic's identity, since a topic that is made anew
under its name counts from 0 again. It keeps that name when it is redriven and fails again.
All of it is bounded, key and headers too: its topic takes every letter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from streams.files import text_sha256
from streams.log import EventLog, Headers, Outgoing, Record
from streams.topics import MAX_LETTER_BYTES, dead_letter_topic

PREFIX = "dlq_"
OUTBOX_ID = "outbox_id"
ORIGIN = "dlqorigin"
"""A header of a redriven record: the name of the letter that it was."""
_MESSAGE_CHARS = 2000
_KEY_BYTES = 65_536
_HEADER_BYTES = 1_048_576
_HEADERS = 1000


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
    origin: str = ""
    topic_id: str = ""

    @property
    def letter_id(self) -> str:
        """Where the original stands: one name per poison record, however often it was redriven. A letter of
        an earlier version does not say which topic of this name it was."""
        place = f"{self.topic}/{self.partition}/{self.offset}"
        return self.origin or (f"{place}@{text_sha256(self.topic_id)[:8]}" if self.topic_id else place)


def dead_letter(record: Record, reason: str, message: str, attempts: int, topic_id: str = "") -> Outgoing:
    """The dead letter of a record: raw bytes, key and headers, plus headers that say what went wrong.
    `topic_id` is the identity of the record's topic (`EventLog.topic_id`).

    What is over the bounds is cut: the value to `MAX_LETTER_BYTES` (its size is then in a header
    `dlq_cut_from`), the key to 64 KiB, the headers to the first thousand, 1 MiB in all.
    """
    extra = {
        "reason": reason,
        "message": message[:_MESSAGE_CHARS],
        "topic": record.partition.topic,
        "partition": str(record.partition.number),
        "offset": str(record.offset),
        "attempts": str(attempts),
        "topic_id": topic_id,
    }
    original = _bounded(_original_headers(record))
    key = None if record.key is None else record.key[:_KEY_BYTES]
    whole = len(record.value) <= MAX_LETTER_BYTES and key == record.key
    if not whole or len(original) < len(_original_headers(record)):
        extra["cut_from"] = str(len(record.value))
    headers = tuple((PREFIX + name, text.encode(errors="replace")) for name, text in extra.items())
    topic = dead_letter_topic(record.partition.topic)
    return Outgoing(topic, key, record.value[:MAX_LETTER_BYTES], (*original, *headers))


def _bounded(headers: Headers) -> Headers:
    """The first headers that fit."""
    kept, size = [], 0
    for name, value in headers[:_HEADERS]:
        size += len(name.encode(errors="replace")) + len(value)
        if size > _HEADER_BYTES:
            break
        kept.append((name, value))
    return tuple(kept)


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
        topic_id=found.get("topic_id", ""),
        origin=next((text.decode(errors="replace") for name, text in record.headers if name == ORIGIN), ""),
    )


def redrive(letter: DeadLetter) -> Outgoing:
    """The original record again, for the topic whose letters these are, whatever a header says. Its event id
    was never marked as known, so it is processed anew; a header names the letter.

    Raises `ValueError` for a letter that was cut: its end is gone.
    """
    record = letter.position
    if letter.cut_from:
        raise ValueError(
            f"dead letter {letter.letter_id} keeps only {len(record.value)} of {letter.cut_from} bytes: "
            "it cannot be redriven"
        )
    headers = tuple(pair for pair in _original_headers(record) if pair[0] != ORIGIN)
    topic = record.partition.topic.removesuffix(dead_letter_topic(""))
    return Outgoing(topic, record.key, record.value, (*headers, (ORIGIN, letter.letter_id.encode())))


def _number(text: str | None, default: int) -> int:
    try:
        return default if text is None else int(text)
    except ValueError:
        return default


def read_all(log: EventLog, topic: str) -> Iterator[DeadLetter]:
    """The dead letters of `topic` (the original's name), oldest first within a partition. Raises
    `TopicMissing`, `LogUnavailable`."""
    return (parse(record) for record in log.read(dead_letter_topic(topic)))


def latest(log: EventLog, topic: str) -> dict[str, DeadLetter]:
    """The last letter of each poisonous record, by its name."""
    return {letter.letter_id: letter for letter in read_all(log, topic)}
