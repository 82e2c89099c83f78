"""Commands that only look: status, profile, rounds."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from agent.profile import canonical_bytes
from agent.standing import Standing
from loop.backends import open_log, open_store, prepare
from loop.config import Config, ConfigError
from loop.doors import open_task
from loop.tables import coverage_line, profile_table, verdict_table
from loop.workers.decide import Decider
from loop.workers.external import in_its_bucket
from loop.workers.record import LoopRound, open_rounds
from streams.codec import Codec, DecodeError
from streams.events import Diagnosed
from streams.folding import fold_diagnoses
from streams.log import EventLog
from streams.state.positions import TopicPositions
from streams.state.redrives import refusals
from streams.state.store import StateStore
from streams.topics import MONITOR_GROUP, TOPICS, dead_letter_topic


def _standing(config: Config, root: Path, store: StateStore) -> tuple[Standing | None, str]:
    """What the policy sees, and the state of the held-out set in words."""
    task = open_task(config, root, store)
    try:
        decider = Decider(config, store, open_rounds(store), task)
        return decider.standing(), decider.held_out.told(task.catalog.names)
    finally:
        task.close()


def show_status(config: Config, root: Path, console: Console) -> None:
    """What is served, consumed and decided."""
    root = prepare(root)
    store = open_store(config, root)
    route = open_rounds(store).route(config.student.name)
    served = f"version {route[0]} (before it: {route[1] or 'none'})" if route else "nothing yet"
    console.print(f"student {config.student.name!r} in {root}: serving {served}", highlight=False)
    with open_log(config, root, None) as log:
        console.print(
            f"waiting in the log: {lag(log, store)} outputs; dead letters: {dead_letters(log)}",
            highlight=False,
        )
    console.print(f"outbox: {len(store.pending(1000))} unsent", highlight=False)
    for gap in TopicPositions(store).gaps(MONITOR_GROUP):
        where = f"{gap.partition.topic}[{gap.partition.number}]"
        console.print(f"gap in {where}: was at {gap.had}, read on from {gap.reads_on}", highlight=False)
    for refused, error in refusals(store):
        console.print(
            f"refused by the log for good, kept in the store: a record of {refused}: {error}", highlight=False
        )
    standing, held_out = _standing(config, root, store)
    console.print(f"held-out set: {held_out}", highlight=False)
    if standing is None:
        console.print("no answer of the served version has been watched yet", highlight=False)
        return
    console.print(f"policy: {standing.decision.kind}")
    for reason in standing.decision.reasons:
        console.print(f"  {reason}", highlight=False)


def lag(log: EventLog, store: StateStore) -> int:
    """Outputs in the log that are not in the state yet."""
    stored = store.offsets(MONITOR_GROUP)
    return sum(
        end - stored.get(partition, 0) for partition, end in log.end_offsets("student-outputs").items()
    )


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
    root = prepare(root)
    standing, _ = _standing(config, root, open_store(config, root))
    if standing is None:
        console.print("no answer of the served version has been watched yet")
        return
    console.print(profile_table(standing.profile, set(standing.alarms)))
    console.print(coverage_line(standing.profile.coverage), highlight=False)


def rebuild_profile(config: Config, root: Path, console: Console) -> bool:
    """Fold the log's diagnoses and compare with the live profile; True when they are the same bytes."""
    root = prepare(root)
    store = open_store(config, root)
    live = store.buckets()
    codec, unreadable = Codec(), 0
    events: dict[str, Diagnosed] = {}
    with open_log(config, root, None) as log:
        for record in log.read(Diagnosed.TOPIC):
            try:
                event = codec.decode(record)
            except DecodeError:
                unreadable += 1
                continue
            if isinstance(event, Diagnosed):
                events.setdefault(event.event_id, event)
    if config.monitor.source == "diagnoses":  # what was refused is not in the profile
        known = store.known(list(events))
        bucket_s = config.monitor.bucket_s
        events = {name: in_its_bucket(event, bucket_s) for name, event in events.items() if name in known}
    rebuilt, kept = canonical_bytes(fold_diagnoses(events.values())), canonical_bytes(live)
    same = rebuilt == kept
    console.print(
        f"{len(events)} diagnoses in the log ({unreadable} unreadable); "
        f"rebuilt profile {len(rebuilt)} bytes, "
        f"live {len(kept)} bytes: {'identical' if same else 'DIFFERENT'}",
        highlight=False,
    )
    return same


def list_rounds(config: Config, root: Path, console: Console) -> None:
    """A table of all rounds."""
    table = Table()
    for name in ("round", "kind", "skills", "state", "trained on", "became", "gate"):
        table.add_column(name)
    for round_ in open_rounds(open_store(config, prepare(root))).list(config.student.name):
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
    console.print("`skillloop rounds show ROUND` shows the reasons", style="dim")


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
    rounds = open_rounds(open_store(config, prepare(root)))
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
