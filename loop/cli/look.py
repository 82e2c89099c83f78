"""Commands that only look: status, profile, rounds."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from agent.profile import ALONE, ProfileTable, canonical_bytes
from agent.standing import Standing
from graphs.teacher import Teacher
from loop.backends import close, find_log, find_store
from loop.config import Config, ConfigError
from loop.doors import open_task, open_teacher, student_books
from loop.tables import abstention_line, accuracy_line, coverage_line, profile_table, verdict_table
from loop.workers.approve import waiting
from loop.workers.decide import Decider
from loop.workers.external import in_its_bucket
from loop.workers.record import LoopRound, LoopRounds, open_rounds
from serving.routes import RouteFile
from streams.backlog import Backlog
from streams.codec import Codec, DecodeError
from streams.events import Diagnosed, EventKey
from streams.folding import fold_diagnoses
from streams.log import EventLog
from streams.state.compaction import first_bucket, without_removed
from streams.state.positions import TopicPositions
from streams.state.redrives import refusals
from streams.state.store import StateStore
from streams.topics import MONITOR_GROUP, TOPICS, dead_letter_topic


class _WhenAsked:
    """A teacher that its first call opens: opening one may create its cache of replies."""

    def __init__(self, open_: Callable[[], Teacher]) -> None:
        self._open = open_

    @cached_property
    def _opened(self) -> Teacher:
        return self._open()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._opened, name)

    def close(self) -> None:
        if "_opened" in vars(self):
            close(self._opened)


def _standing(config: Config, root: Path, store: StateStore) -> tuple[Standing | None, str]:
    """What the policy sees, and the state of the held-out set in words."""
    books = student_books(config, root, store)
    teacher = _WhenAsked(lambda: open_teacher(config.teacher, books, config.seed))
    task = open_task(config, root, store, cast(Teacher, teacher))
    try:
        decider = Decider(config, store, open_rounds(store), task)
        return decider.standing(), decider.held_out.told(task.catalog.names)
    finally:
        task.close()


def show_status(config: Config, root: Path, console: Console) -> None:
    """What is served, consumed and decided."""
    root = root.resolve()
    store = find_store(config, root)
    rounds = open_rounds(store)
    route = rounds.route(config.student.name)
    served = f"version {route[0]} (before it: {route[1] or 'none'})" if route else "nothing yet"
    console.print(f"student {config.student.name!r} in {root}: serving {served}", highlight=False)
    table = RouteFile(root).read()
    if table is not None:
        shares = ", ".join(f"version {share.version} as {share.model!r}" for share in table.shares)
        servers = ", ".join(replica.url for replica in table.replicas)
        console.print(f"users are led to {shares} on {servers}", highlight=False)
    with find_log(config, root) as log:
        console.print(
            f"waiting in the log: {lag(config, log, store)} {config.monitor.topic};"
            f" dead letters: {dead_letters(log)}",
            highlight=False,
        )
    console.print(f"outbox: {len(store.pending(1000))} unsent", highlight=False)
    _print_unreadable(rounds, config.student.name, console)
    for asked in waiting(store, rounds, config.student.name):
        console.print(
            f"waits for a person: {asked.round_id}, {asked.subject} (`skillloop approvals show"
            f" {asked.round_id}`)",
            highlight=False,
        )
    for gap in TopicPositions(store).gaps(MONITOR_GROUP):
        where = f"{gap.partition.topic}[{gap.partition.number}]"
        console.print(f"gap in {where}: was at {gap.had}, read on from {gap.reads_on}", highlight=False)
    for refused, error in refusals(store):
        console.print(
            f"refused by the log for good, kept in the store: a record of {refused}: {error}", highlight=False
        )
    if unknown := unknown_versions(store, rounds, config.student.name):
        counts = ", ".join(f"{outputs} of version {version}" for version, outputs in unknown.items())
        console.print(
            f"answers of versions that this loop has not made: {counts}; they count for that version alone",
            highlight=False,
            style="yellow",
        )
    standing, held_out = _standing(config, root, store)
    console.print(f"held-out set: {held_out}", highlight=False)
    if standing is None:
        console.print("no answer of the served version has been watched yet", highlight=False)
        return
    console.print(accuracy_line(standing.profile), highlight=False)
    console.print(coverage_line(standing.profile.coverage), highlight=False)
    console.print(abstention_line(standing.profile.coverage), highlight=False)
    console.print(f"policy: {standing.decision.kind}")
    for reason in standing.decision.reasons:
        console.print(f"  {reason}", highlight=False)


def unknown_versions(store: StateStore, rounds: LoopRounds, student: str) -> dict[int, int]:
    """Answers watched of each version that was neither made in a round, nor trained on, nor routed to: a
    producer's mistake, or a version of somebody else's."""
    known = set(rounds.route(student) or ())
    for round_ in rounds.list(student):
        judged = round_.record.judged
        known |= {round_.record.opened.champion, judged.version if judged else None}
    marks = store.watermarks(student)
    return {version: marks[version][0] for version in sorted(marks.keys() - known)}


def lag(config: Config, log: EventLog, store: StateStore) -> int:
    """What the monitor reads of the log and is not in the state yet."""
    return Backlog.measure(log, MONITOR_GROUP, [config.monitor.topic]).left(store)


def dead_letters(log: EventLog) -> int:
    """Records on all dead-letter topics."""
    names = {spec.name for spec in TOPICS}
    return sum(
        sum(log.end_offsets(name).values())
        for name in (dead_letter_topic("student-outputs"), dead_letter_topic("diagnoses"))
        if name in names
    )


def show_profile(config: Config, root: Path, console: Console) -> None:
    """The profile's table."""
    standing, _ = _standing(config, root, find_store(config, root))
    if standing is None:
        console.print("no answer of the served version has been watched yet")
        return
    console.print(profile_table(standing.profile, set(standing.alarms)))
    console.print(coverage_line(standing.profile.coverage), highlight=False)


def rebuild_profile(config: Config, root: Path, console: Console) -> bool:
    """Fold the log's diagnoses and compare with the live profile; True when they are the same bytes."""
    store = find_store(config, root)
    from_day, bucket_s = store.known_from(), config.monitor.bucket_s
    live = store.buckets()
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


def list_rounds(config: Config, root: Path, console: Console) -> None:
    """A table of all rounds."""
    table = Table()
    for name in ("round", "kind", "skills", "state", "trained on", "became", "gate"):
        table.add_column(name)
    rounds = open_rounds(find_store(config, root))
    for round_ in rounds.list(config.student.name):
        record = round_.record
        table.add_row(
            round_.round_id,
            record.decision.kind,
            ", ".join(record.skills),
            round_.state,
            str(record.opened.champion),
            str(record.judged.version) if record.judged else "",
            _outcome(round_),
        )
    console.print(table)
    _print_unreadable(rounds, config.student.name, console)
    console.print("`skillloop rounds show ROUND` shows the reasons", style="dim")


def _print_unreadable(rounds: LoopRounds, student: str, console: Console) -> None:
    for reason in rounds.unreadable(student).values():
        console.print(f"[red]set aside:[/] {escape(reason)}", highlight=False, markup=True)


def discard_round(config: Config, root: Path, round_id: str, console: Console) -> None:
    """End a round whose record cannot be read. Raises `ConfigError` for any other."""
    if not open_rounds(find_store(config, root)).discard(round_id):
        raise ConfigError(f"round {round_id!r} is not under way, or can be read: nothing was changed")
    console.print(f"round {round_id} has ended as failed; its record stays as it is", highlight=False)


def _outcome(round_: LoopRound) -> str:
    """The error, else what the gate said, else how the present step fares."""
    ended, judged = round_.record.ended, round_.record.judged
    if ended and ended.error:
        return ended.error
    if judged:
        verdict = judged.verdict
        return "open" if verdict.promote else f"closed, {len(verdict.reasons)} reasons"
    return f"failed {round_.failures} times: {round_.error}" if round_.failures else ""


def show_round(config: Config, root: Path, round_id: str, console: Console) -> None:
    """Everything the store knows of one round. Raises `ConfigError` for an unknown one."""
    rounds = open_rounds(find_store(config, root))
    round_ = rounds.get(round_id)
    if round_ is None:
        known = ", ".join(other.round_id for other in rounds.list(config.student.name)) or "none"
        raise ConfigError(f"no round {round_id!r} in {root}; known: {known}")
    _print_round(round_, console)


def _print_round(round_: LoopRound, console: Console) -> None:
    record = round_.record
    console.print(f"{round_.round_id}: {round_.state}, MLflow run {round_.run_id or 'none'}", highlight=False)
    for reason in record.decision.reasons:
        console.print(f"  {reason}", highlight=False)
    if round_.failures:
        console.print(f"failed {round_.failures} times, the last: {round_.error}", highlight=False)
    if record.judged:
        console.print(verdict_table(record.judged.verdict))
    shown = record.model_dump_json(
        exclude={"decision": True, "opened": {"profile"}, "curated": {"used"}, "judged": {"verdict"}},
        exclude_none=True,
    )
    console.print_json(shown)
