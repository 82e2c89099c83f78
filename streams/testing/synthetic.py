"""Synthetic traffic with a known truth, for tests, benchmarks and the crash test: no model is needed to
diagnose it.

The question says which skills it needs, the answer which of them are missing, so `diagnose` is exact and a
run can be compared with the reference `expected_buckets`. Everything follows from the seed.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from agent.profile import ProfileTable
from streams.codec import MAX_BYTES, encode
from streams.consume import Effects
from streams.events import Diagnosed, Event, StudentOutput, derived_id
from streams.folding import fold_diagnoses, watermarks
from streams.log import Outgoing

SKILLS = ("add", "divide", "factor", "gcd", "multiply", "order", "powers", "subtract")
START = datetime(2026, 1, 1, tzinfo=UTC)
BUCKET_S = 3600
POISON = ("not-json", "no-type", "unknown-type", "unknown-version", "invalid", "oversized", "handler")


def output(number: int, seed: int = 0, spacing_s: float = 37.0) -> StudentOutput:
    """Answer number `number` of a run."""
    dice = random.Random(f"{seed}/{number}")
    needed = sorted(dice.sample(SKILLS, dice.randint(1, 3)))
    missing = [skill for skill in needed if dice.random() < 0.3]
    return StudentOutput(
        event_id=derived_id(f"synthetic-{seed}", str(number)),
        occurred_at=START + timedelta(seconds=spacing_s * number),
        student=f"student-{dice.randrange(3)}",
        student_version=dice.randint(1, 2),
        session=str(dice.randrange(64)),
        question="needs " + " ".join(needed),
        answer="misses " + " ".join(missing),
    )


def diagnosed(event: StudentOutput) -> Diagnosed:
    """What the texts of an answer say. Raises `ValueError` for poison of the kind `handler`."""
    head, *missing = event.answer.split()
    if head != "misses":
        raise ValueError(f"cannot diagnose {event.answer[:40]!r}")
    needed = tuple(event.question.split()[1:])
    return Diagnosed(
        event_id=event.derive("diagnose"),
        occurred_at=event.occurred_at,
        student=event.student,
        causation_id=event.event_id,
        student_version=event.student_version,
        verdict="incorrect" if missing else "correct",
        needed=needed,
        missing=tuple(missing),
        decided_by="synthetic",
        teacher="synthetic",
        bucket=int(event.occurred_at.timestamp() // BUCKET_S),
    )


def diagnose(events: Sequence[Event]) -> Effects:
    """A handler for the consume loop: counts, watermarks and one `Diagnosed` per answer."""
    diagnoses = [diagnosed(event) for event in events if isinstance(event, StudentOutput)]
    outbox = [encode(diagnosis) for diagnosis in diagnoses]
    return Effects(buckets=fold_diagnoses(diagnoses), watermarks=watermarks(diagnoses), outbox=outbox)


def expected_buckets(events: Iterable[StudentOutput]) -> ProfileTable:
    """The reference: each answer counted once, without any log, store or batch."""
    return fold_diagnoses(map(diagnosed, events))


def poison(kind: str, number: int, seed: int = 0) -> Outgoing:
    """A record that can never be processed; `kind` is one of `POISON`."""
    event = output(number, seed).model_copy(update={"event_id": derived_id(f"poison-{seed}", str(number))})
    if kind == "handler":
        return encode(event.model_copy(update={"answer": f"boom {number}"}))
    good = encode(event)
    values = {
        "not-json": b"\xff\x00{" + good.value,
        "unknown-version": good.value.replace(b'"schema_version":1', b'"schema_version":99'),
        "invalid": good.value.replace(b'"student_version":', b'"student_version":-'),
        "oversized": good.value + b" " * MAX_BYTES,
    }
    headers = {
        "no-type": tuple(pair for pair in good.headers if pair[0] != "ce_type"),
        "unknown-type": tuple(
            (name, b"other" if name == "ce_type" else value) for name, value in good.headers
        ),
    }
    return replace(good, value=values.get(kind, good.value), headers=headers.get(kind, good.headers))


@dataclass(frozen=True)
class SyntheticTraffic:
    """What is sent, in this order; the answers that should be counted, and the records that never can be."""

    records: Sequence[Outgoing]
    events: Sequence[StudentOutput]
    poison: Sequence[Outgoing]

    @property
    def poisoned(self) -> int:
        """How many poison records there are."""
        return len(self.poison)


def traffic(seed: int, events: int, duplicates: float = 0.05, poisoned: int = 20) -> SyntheticTraffic:
    """Answers with duplicates and poison records mixed in and the order shaken (neighbours within about 50
    places)."""
    dice = random.Random(seed)
    answers = [output(number, seed) for number in range(events)]
    good = [encode(event) for event in answers]
    again = dice.sample(good, int(events * duplicates))
    small = [kind for kind in POISON if kind != "oversized"]
    bad = [
        poison("oversized" if number == 0 else dice.choice(small), number, seed) for number in range(poisoned)
    ]
    places = [(number + dice.gauss(0, 50), record) for number, record in enumerate(good)]
    places += [(dice.uniform(0, events), record) for record in (*again, *bad)]
    places.sort(key=lambda place: place[0])
    return SyntheticTraffic([record for _, record in places], answers, bad)
