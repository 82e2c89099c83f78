"""Folding diagnoses into the profile: the hot path of ingest, where the work per event decides the events per
second."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime

from agent.profile import Observation, ProfileTable, fold_counted
from streams.consume import Effects
from streams.events import Diagnosed, Event, StudentOutput


def fold_diagnoses(events: Iterable[Diagnosed]) -> ProfileTable:
    """The profile of some diagnoses; each event id must occur once. An abstention that does not say how the
    answer was judged adds nothing.

    Equal diagnoses are counted first and then added up once: one dictionary step per event instead of one per
    event and skill. Raises `ValueError` for an event whose `missing` is not a subset of `needed`, that
    repeats a skill, or that names a reserved one (`*...`).
    """
    groups = Counter(
        [(e.student, e.student_version, e.bucket, e.needed, e.missing, e.verdict, e.judged) for e in events]
    )
    return fold_counted(
        (Observation(student, version, bucket, needed, missing, *_opinion(verdict, judged)), count)
        for (student, version, bucket, needed, missing, verdict, judged), count in groups.items()
        if verdict != "abstained" or judged
    )


def _opinion(verdict: str, judged: str | None) -> tuple[bool, bool | None]:
    """Whether the answer is wrong, and whether anybody judged it."""
    return "incorrect" in (verdict, judged), None if judged is None else judged != "undecided"


def fold_handler(events: Sequence[Event]) -> Effects:
    """A handler that folds `Diagnosed` events from the log into the store's profile as they are."""
    diagnosed = [event for event in events if isinstance(event, Diagnosed)]
    failed = {
        event.identity: f"{event.TYPE} is not expected here"
        for event in events
        if not isinstance(event, Diagnosed)
    }
    return Effects(buckets=fold_diagnoses(diagnosed), watermarks=watermarks(diagnosed), failed=failed)


def watermarks(events: Iterable[Diagnosed | StudentOutput]) -> dict[tuple[str, int], tuple[int, float]]:
    """Answers watched and newest event time (epoch seconds, never before 1970) per student and version;
    abstentions count too."""
    times: dict[tuple[str, int], list[datetime]] = defaultdict(list)
    for event in events:
        times[event.student, event.student_version].append(event.occurred_at)
    return {key: (len(seen), max(0.0, max(seen).timestamp())) for key, seen in times.items()}
