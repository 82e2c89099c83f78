"""What a student has lately failed at, read from the log: the evidence from which a round's strategy plans.

The topic `diagnoses` says what was missing in which answer, `student-outputs` what was asked. Only the newest
records of each partition are read, so the cost does not grow with the log; what was made of them is in the
round's checkpointed plan, so a resumed round does not read again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TypeVar

from agent.plan import Failure
from graphs.curate.planning import Evidence
from streams.codec import Codec, DecodeError
from streams.events import Diagnosed, Event, StudentOutput
from streams.files import text_sha256
from streams.log import EventLog

E = TypeVar("E", bound=Event)


def recent_failures(
    log: EventLog,
    student: str,
    version: int,
    skills: Collection[str],
    at_most: int,
    records: int,
) -> Evidence:
    """The newest `at_most` questions at which this version of the student missed one of `skills`; of other
    missing skills nothing is said. `records` are read of each partition.

    A question is known by the application's id for it, else by its text; one whose text is no longer in the
    part that is read, by its diagnosis. Raises `streams.log.LogUnavailable`, `TopicMissing`.
    """
    diagnosed = {
        event.causation_id or event.event_id: event
        for event in _newest(log, Diagnosed, records)
        if event.student == student and event.student_version == version and set(event.missing) & set(skills)
    }
    asked = {
        event.event_id: event
        for event in _newest(log, StudentOutput, records)
        if event.student == student and event.event_id in diagnosed
    }
    newest = sorted(diagnosed.items(), key=lambda pair: (pair[1].occurred_at, pair[0]), reverse=True)
    needed: dict[str, dict[str, None]] = {}
    missing: dict[str, dict[str, None]] = {}
    texts: dict[str, str] = {}
    for output_id, event in newest:
        output = asked.get(output_id)
        question_id = _question_id(output) if output else output_id
        if question_id not in missing and len(missing) == at_most:
            break
        needed.setdefault(question_id, {}).update(dict.fromkeys(event.needed))
        missed = (skill for skill in event.missing if skill in skills)
        missing.setdefault(question_id, {}).update(dict.fromkeys(missed))
        if output:
            texts[question_id] = output.question
    failures = [
        Failure(question_id=known, needed=tuple(needed[known]), missing=tuple(missing[known]))
        for known in missing
    ]
    return Evidence(failures, texts)


def _question_id(output: StudentOutput) -> str:
    return output.question_id or f"asked-{text_sha256(output.question)[:16]}"


def _newest(log: EventLog, kind: type[E], records: int) -> Iterator[E]:
    """The last `records` events of each partition of their topic; what cannot be read is left to the dead
    letters."""
    codec = Codec((kind,))
    start = {partition: max(0, end - records) for partition, end in log.end_offsets(kind.TOPIC).items()}
    for record in log.read(kind.TOPIC, start):
        try:
            event = codec.decode(record)
        except DecodeError:
            continue
        if isinstance(event, kind):
            yield event
