"""Folding diagnoses into the profile in bulk: the hot path of ingest, where the work per event decides the
events per second."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime

from agent.profile import ALL, Observation, ProfileTable, fold
from streams.consume import Effects
from streams.events import Diagnosed, Event, StudentOutput
from streams.state.store import BucketKey


def observation(event: Diagnosed) -> Observation | None:
    """What a diagnosis adds to the profile; an abstention adds nothing."""
    if event.verdict == "abstained":
        return None
    incorrect = event.verdict == "incorrect"
    return Observation(
        event.student, event.student_version, event.bucket, event.needed, event.missing, incorrect
    )


def fold_diagnoses(events: Iterable[Diagnosed]) -> ProfileTable:
    """The profile of some diagnoses; each event id must occur once."""
    return fold(seen for event in events if (seen := observation(event)) is not None)


Group = tuple[str, int, int, tuple[str, ...], tuple[str, ...], str]


def fold_in_bulk(events: Iterable[Diagnosed]) -> dict[BucketKey, tuple[int, int]]:
    """The same table as `loop.workers.folding.fold_diagnoses`, for events with a clean `missing` (a subset of
    `needed`).

    Equal diagnoses are counted first and then added up once: one dictionary step per event instead of one per
    event and skill. Raises `ValueError` for an event whose `missing` is no subset of `needed`, that repeats a
    skill, or that names the reserved `*`.
    """
    groups: Counter[Group] = Counter(
        [(e.student, e.student_version, e.bucket, e.needed, e.missing, e.verdict) for e in events]
    )
    table: dict[BucketKey, tuple[int, int]] = {}
    for (student, version, bucket, needed, missing, verdict), count in groups.items():
        if verdict == "abstained":
            continue
        _check(needed, missing)
        wrong = count if missing or verdict == "incorrect" else 0
        _add(table, (student, version, ALL, bucket), count, wrong)
        for skill in needed:
            _add(table, (student, version, skill, bucket), count, count if skill in missing else 0)
    return table


def _check(needed: tuple[str, ...], missing: tuple[str, ...]) -> None:
    known = set(needed)
    if (
        len(known) < len(needed)
        or len(set(missing)) < len(missing)
        or not known.issuperset(missing)
        or ALL in known
    ):
        raise ValueError(
            f"needed={needed} and missing={missing} are no clean diagnosis: "
            f"missing must be a subset, without repetitions or {ALL!r}"
        )


def _add(table: dict[BucketKey, tuple[int, int]], key: BucketKey, needed: int, missing: int) -> None:
    known = table.get(key)
    table[key] = (needed, missing) if known is None else (known[0] + needed, known[1] + missing)


def fold_handler(events: Sequence[Event]) -> Effects:
    """A handler that folds `Diagnosed` events from the log straight into the store's profile (`monitor.source
    = "diagnoses"`)."""
    diagnosed = [event for event in events if isinstance(event, Diagnosed)]
    failed = {
        event.event_id: f"{event.TYPE} is not expected here"
        for event in events
        if not isinstance(event, Diagnosed)
    }
    return Effects(buckets=fold_in_bulk(diagnosed), watermarks=watermarks(diagnosed), failed=failed)


def watermarks(events: Iterable[Diagnosed | StudentOutput]) -> dict[tuple[str, int], tuple[int, float]]:
    """Answers watched and newest event time (epoch seconds, never before 1970) per student and version;
    abstentions count too."""
    times: dict[tuple[str, int], list[datetime]] = defaultdict(list)
    for event in events:
        times[event.student, event.student_version].append(event.occurred_at)
    return {key: (len(found), max(0.0, max(found).timestamp())) for key, found in times.items()}
