"""`skillloop status`: what is served, what waits, what the policy would do now, what was deployed last."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from agent.items import JsonObject
from agent.standing import Standing
from loop.backends import find_log, find_store
from loop.cli.look import standing_of
from loop.cli.show_rounds import print_json, print_unreadable, require_student
from loop.config import Config
from loop.tables import abstention_line, accuracy_line, coverage_line
from loop.workers.approve import waiting
from loop.workers.record import LoopRounds, open_rounds
from serving.routes import RouteFile, RouteTable
from streams.backlog import Backlog
from streams.codec import Codec, DecodeError
from streams.events import Deployed
from streams.log import EventLog
from streams.state.positions import TopicPositions
from streams.state.redrives import refusals, unsent
from streams.state.store import StateStore
from streams.topics import MONITOR_GROUP, dead_letter_topic

LAST_DEPLOYMENTS = 3


def show_status(config: Config, root: Path, console: Console, as_json: bool = False) -> None:
    """Everything at a glance. Raises `NothingThere`, and `ConfigError` for a student that the run does not
    have."""
    root = root.resolve()
    student, store = config.student.name, find_store(config, root)
    rounds = open_rounds(store)
    require_student(rounds, student, root)
    with find_log(config, root) as log:
        unread = {"waiting": lag(config, log, store), "dead_letters": sum(dead_letters(log).values())}
        deployed = last_deployments(log, student)
    standing, held_out = standing_of(config, root, store)
    if as_json:
        told = _routed(rounds, student, root) | unread | _noted(store, rounds, student)
        told |= {"held_out": held_out, "standing": _seen(standing)}
        print_json(told | {"deployments": [event.model_dump(mode="json") for event in deployed]}, console)
        return
    _print_routed(rounds, student, root, console)
    topic, letters = config.monitor.topic, unread["dead_letters"]
    console.print(
        f"waiting in the log: {unread['waiting']} {topic}; dead letters: {letters}", highlight=False
    )
    _print_noted(store, rounds, student, console)
    console.print(f"held-out set: {held_out}", highlight=False)
    _print_standing(standing, console)
    for event in deployed:
        console.print(deployment_line(event), highlight=False)


def _routed(rounds: LoopRounds, student: str, root: Path) -> JsonObject:
    route, table = rounds.route(student), RouteFile(root).read()
    return {
        "student": student,
        "directory": str(root),
        "serving": route[0] if route else None,
        "before_it": route[1] if route else None,
        "routes": None if table is None else table.model_dump(mode="json"),
    }


def _print_routed(rounds: LoopRounds, student: str, root: Path, console: Console) -> None:
    route, table = rounds.route(student), RouteFile(root).read()
    served = f"version {route[0]} (before it: {route[1] or 'none'})" if route else "nothing yet"
    console.print(f"student {student!r} in {root}: serving {served}", highlight=False)
    if table is not None:
        console.print(_led(table), highlight=False)


def _led(table: RouteTable) -> str:
    shares = ", ".join(f"version {share.version} as {share.model!r}" for share in table.shares)
    return f"users are led to {shares} on {', '.join(replica.url for replica in table.replicas)}"


def _noted(store: StateStore, rounds: LoopRounds, student: str) -> JsonObject:
    gaps = TopicPositions(store).gaps(MONITOR_GROUP)
    return {
        "outbox": unsent(store),
        "set_aside": rounds.unreadable(student),
        "waits_for_a_person": [
            {"round_id": asked.round_id, "subject": asked.subject}
            for asked in waiting(store, rounds, student)
        ],
        "gaps": [
            {
                "partition": f"{gap.partition.topic}[{gap.partition.number}]",
                "was_at": gap.had,
                "reads_on": gap.reads_on,
            }
            for gap in gaps
        ],
        "refused": [{"topic": topic, "error": error} for topic, error in refusals(store)],
        "answers_of_unknown_versions": {
            str(version): count for version, count in unknown_versions(store, rounds, student).items()
        },
    }


def _print_noted(store: StateStore, rounds: LoopRounds, student: str, console: Console) -> None:
    """What the store holds that a person may have to act on."""
    noted = _noted(store, rounds, student)
    console.print(f"outbox: {noted['outbox']} unsent", highlight=False)
    print_unreadable(noted["set_aside"], console)
    lines = [
        f"waits for a person: {asked['round_id']}, {asked['subject']} (`skillloop approvals show"
        f" {asked['round_id']}`)"
        for asked in noted["waits_for_a_person"]
    ]
    lines += [
        f"gap in {gap['partition']}: was at {gap['was_at']}, read on from {gap['reads_on']}"
        for gap in noted["gaps"]
    ]
    lines += [
        f"refused by the log for good, kept in the store: a record of {refused['topic']}: {refused['error']}"
        for refused in noted["refused"]
    ]
    for line in lines:
        console.print(line, highlight=False)
    if unknown := noted["answers_of_unknown_versions"]:
        counts = ", ".join(f"{outputs} of version {version}" for version, outputs in unknown.items())
        console.print(
            f"answers of versions that this loop has not made: {counts}; they count for that version alone",
            highlight=False,
            style="yellow",
        )


def _seen(standing: Standing | None) -> JsonObject | None:
    if standing is None:
        return None
    profile = standing.profile
    return {
        "version": profile.version,
        "accuracy": profile.accuracy,
        "answers": profile.answers,
        "coverage": asdict(profile.coverage),
        "alarms": sorted(standing.alarms),
        "policy": standing.decision.kind,
        "reasons": list(standing.decision.reasons),
    }


def _print_standing(standing: Standing | None, console: Console) -> None:
    if standing is None:
        console.print("no answer of the served version has been watched yet", highlight=False)
        return
    profile = standing.profile
    for line in (accuracy_line(profile), coverage_line(profile.coverage), abstention_line(profile.coverage)):
        console.print(line, highlight=False)
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


def dead_letters(log: EventLog) -> dict[str, int]:
    """Records on each dead-letter topic."""
    names = (dead_letter_topic("student-outputs"), dead_letter_topic("diagnoses"))
    return {name: sum(log.end_offsets(name).values()) for name in names}


def last_deployments(log: EventLog, student: str) -> list[Deployed]:
    """The last few switches of the served version, oldest first."""
    codec, found = Codec(), {}
    for record in log.read(Deployed.TOPIC):
        try:
            event = codec.decode(record)
        except DecodeError:
            continue
        if isinstance(event, Deployed) and event.student == student:
            found[event.event_id] = event
    return sorted(found.values(), key=lambda event: event.occurred_at)[-LAST_DEPLOYMENTS:]


def deployment_line(event: Deployed) -> str:
    """Who made which version the served one, when and why."""
    told = f"{event.occurred_at:%Y-%m-%d %H:%M} UTC: {event.action} to version {event.version}"
    if event.round_id:
        told += f", round {event.round_id}"
    if event.by:
        told += f", by {event.by}"
    return f"{told}: {event.reason}" if event.reason else told
