"""The profile, shown and rebuilt, and what the policy sees (loop/cli/status.py shows it)."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import cast

from rich.console import Console

from agent.pairs import pair_misses
from agent.profile import ALONE, ProfileTable, canonical_bytes
from agent.standing import Standing
from graphs.teacher import Teacher
from loop.backends import close, find_log, find_store
from loop.cli.show_rounds import require_student
from loop.config import Config
from loop.doors import open_task, open_teacher, student_books
from loop.tables import coverage_line, pairs_table, profile_table
from loop.workers.decide import Decider
from loop.workers.external import in_its_bucket
from loop.workers.record import open_rounds
from streams.codec import Codec, DecodeError
from streams.events import Diagnosed, EventKey
from streams.folding import fold_diagnoses
from streams.state.compaction import first_bucket, without_removed
from streams.state.store import StateStore


class _WhenAsked:
    """A teacher that its first call opens: opening one may create its cache of replies."""

    def __init__(self, open_: Callable[[], Teacher]) -> None:
        self._open = open_

    @cached_property
    def _opened(self) -> Teacher:
        return self._open()

    def __getattr__(self, name: str) -> object:
        return getattr(self._opened, name)

    def close(self) -> None:
        if "_opened" in vars(self):
            close(self._opened)


def standing_of(config: Config, root: Path, store: StateStore) -> tuple[Standing | None, str]:
    """What the policy sees, and the state of the held-out set in words."""
    books = student_books(config, root, store)
    teacher = _WhenAsked(lambda: open_teacher(config.teacher, books, config.seed))
    task = open_task(config, root, store, cast(Teacher, teacher))
    try:
        decider = Decider(config, store, open_rounds(store), task)
        return decider.standing(), decider.held_out.told(task.catalog.names)
    finally:
        task.close()


def show_profile(config: Config, root: Path, console: Console) -> None:
    """The profile's table."""
    store = find_store(config, root)
    require_student(open_rounds(store), config.student.name, root)
    standing, _ = standing_of(config, root, store)
    if standing is None:
        console.print("no answer of the served version has been watched yet")
        return
    console.print(profile_table(standing.profile, set(standing.alarms)))
    console.print(coverage_line(standing.profile.coverage), highlight=False)


def show_pairs(config: Config, root: Path, console: Console, least: int) -> None:
    """Pairs of skills that the log's diagnoses of the served version have, and how often they fail."""
    rounds = open_rounds(find_store(config, root))
    require_student(rounds, config.student.name, root)
    route = rounds.route(config.student.name)
    if route is None:
        console.print("nothing is served yet")
        return
    events, _ = _diagnoses(config, root)
    judged = [
        (event.needed, event.judged == "incorrect")
        for event in events.values()
        if (event.student, event.student_version) == (config.student.name, route[0])
        and event.judged in ("correct", "incorrect")
    ]
    rows = pair_misses(judged, least)
    if rows:
        console.print(pairs_table(rows, route[0]))
    told = f"{len(judged)} judged answers of version {route[0]}, {len(rows)} pairs of skills with {least} or"
    console.print(f"{told} more", highlight=False)


def _diagnoses(config: Config, root: Path) -> tuple[dict[EventKey, Diagnosed], int]:
    """The log's diagnoses, each once, and how many records could not be read."""
    codec, unreadable = Codec(), 0
    events: dict[EventKey, Diagnosed] = {}
    with find_log(config, root) as log:
        for record in log.read(Diagnosed.TOPIC):
            try:
                event = codec.decode(record)
            except DecodeError:
                unreadable += 1
                continue
            if isinstance(event, Diagnosed):
                events.setdefault(event.identity, event)
    return events, unreadable


def rebuild_profile(config: Config, root: Path, console: Console) -> bool:
    """Fold the log's diagnoses and compare with the live profile; True when they are the same bytes."""
    store = find_store(config, root)
    from_day, bucket_s = store.known_from(), config.monitor.bucket_s
    live = store.buckets()
    events, unreadable = _diagnoses(config, root)
    read = len(events)
    if config.monitor.source == "outputs":
        events = _of_counted_answers(events, store, from_day)
    else:  # what was refused is not in the profile
        known = store.known(events.keys())
        events = {key: in_its_bucket(event, bucket_s) for key, event in events.items() if key in known}
        if from_day is not None:  # what was refused before is forgotten
            since = first_bucket(from_day, bucket_s)
            events = {key: event for key, event in events.items() if event.bucket >= since}
            live = {key: counts for key, counts in live.items() if key.bucket >= since}
    table = fold_diagnoses(events.values())
    if from_day is not None:
        table = without_removed(table, live, from_day, bucket_s)
    first = min((key.bucket for key in live if key.skill.startswith(ALONE)), default=None)
    rebuilt, kept = canonical_bytes(_known(table, first)), canonical_bytes(_known(live, first))
    same = rebuilt == kept
    console.print(
        f"{read} diagnoses in the log, {read - len(events)} of them not this loop's "
        f"({unreadable} unreadable); rebuilt profile {len(rebuilt)} bytes, "
        f"live {len(kept)} bytes: {'identical' if same else 'DIFFERENT'}"
        + ("" if from_day is None else f" (compacted: of before {date.fromordinal(from_day)}, what is left)"),
        highlight=False,
    )
    return same


def _of_counted_answers(
    events: dict[EventKey, Diagnosed], store: StateStore, from_day: int | None
) -> dict[EventKey, Diagnosed]:
    """The diagnoses that the monitor made: their ids follow from answers that the store has counted. Others
    may write to the topic too. Before `from_day` the store has forgotten which answers it counted."""
    ours = {key: event for key, event in events.items() if event.is_monitors}
    answers = store.known({(event.student, event.causation_id or "") for event in ours.values()})
    return {
        key: event
        for key, event in ours.items()
        if (event.student, event.causation_id) in answers
        or (from_day is not None and event.occurred_at.toordinal() < from_day)
    }


def _known(table: ProfileTable, first: int | None) -> ProfileTable:
    """Without the rows that the version before did not write; `first` is the first bucket that has any."""
    return {
        key: counts
        for key, counts in table.items()
        if not key.skill.startswith(ALONE) or (first is not None and key.bucket > first)
    }
