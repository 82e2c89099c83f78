"""What `skillloop rounds` shows. Loads neither the policy nor the task: these commands are quick."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from agent.items import JsonObject
from loop.backends import find_store
from loop.config import Config, ConfigError
from loop.tables import verdict_table
from loop.workers.record import LoopRound, LoopRounds, RoundParts, open_rounds


def find_rounds(config: Config, root: Path) -> LoopRounds:
    """The rounds of a run that is looked at. Raises `NothingThere`, and `ConfigError` where the store knows
    other students than the configured one."""
    rounds = open_rounds(find_store(config, root))
    require_student(rounds, config.student.name, root)
    return rounds


def require_student(rounds: LoopRounds, student: str, root: Path) -> None:
    """Raises `ConfigError` where the store knows other students and not this one."""
    known = rounds.students()
    if known and student not in known:
        raise ConfigError(
            f"no student {student!r} in {root}; it has {', '.join(map(repr, known))}: name one with"
            " student.name (--config FILE, or SKILLLOOP_STUDENT__NAME)"
        )


def list_rounds(config: Config, root: Path, console: Console, as_json: bool = False) -> None:
    """A table of all rounds."""
    rounds = find_rounds(config, root)
    found, set_aside = rounds.list(config.student.name), rounds.unreadable(config.student.name)
    if as_json:
        print_json({"rounds": [_summary(round_) for round_ in found], "set_aside": set_aside}, console)
        return
    table = Table()
    for name in ("round", "kind", "skills", "state", "trained on", "became", "gate"):
        table.add_column(name)
    for round_ in found:
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
    print_unreadable(set_aside, console)
    console.print("`skillloop rounds show ROUND` shows the reasons", style="dim")


def print_unreadable(set_aside: Mapping[str, str], console: Console) -> None:
    """Why records cannot be read, by round."""
    for reason in set_aside.values():
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


def show_round(config: Config, root: Path, round_id: str, console: Console, as_json: bool = False) -> None:
    """Everything the store knows of one round. Raises `ConfigError` for an unknown one."""
    rounds = find_rounds(config, root)
    round_ = rounds.get(round_id)
    if round_ is None:
        known = ", ".join(other.round_id for other in rounds.list(config.student.name)) or "none"
        raise ConfigError(f"no round {round_id!r} in {root}; known: {known}")
    if as_json:
        record = round_.record.model_dump(mode="json", exclude_none=True)
        print_json(_summary(round_) | {"run_id": round_.run_id, "record": record}, console)
    else:
        _print_round(round_, console)


def print_json(value: JsonObject, console: Console) -> None:
    """For programs: one JSON object, never wrapped."""
    console.print(json.dumps(value, indent=2), soft_wrap=True, highlight=False)


def _summary(round_: LoopRound) -> JsonObject:
    record = round_.record
    return {
        "round_id": round_.round_id,
        "kind": record.decision.kind,
        "skills": list(record.skills),
        "state": round_.state,
        "trained_on": record.opened.champion,
        "version": record.judged.version if record.judged else None,
        "outcome": _outcome(round_),
        "failures": round_.failures,
    }


def _print_round(round_: LoopRound, console: Console) -> None:
    record = round_.record
    console.print(f"{round_.round_id}: {round_.state}, MLflow run {round_.run_id or 'none'}", highlight=False)
    for reason in record.decision.reasons:
        console.print(f"  {reason}", highlight=False)
    if round_.failures:
        console.print(f"failed {round_.failures} times, the last: {round_.error}", highlight=False)
    for line in _steps(record):
        console.print(line, highlight=False)
    if record.judged:
        console.print(verdict_table(record.judged.verdict))
    console.print("all that is recorded: --json", style="dim")


def _steps(record: RoundParts) -> Iterator[str]:
    """What each step did, a line each."""
    opened, curated, trained, judged = record.opened, record.curated, record.trained, record.judged
    yield (
        f"opened {opened.at:%Y-%m-%d %H:%M} UTC (event time), after {opened.answers} answers, on version"
        f" {opened.champion}, held-out set {opened.held_out}"
    )
    if curated:
        parts = curated.manifest.per_strategy.items()
        usage = curated.report.usage
        dropped = sum(curated.report.dropped.values())
        yield (
            f"data: {curated.manifest.examples} examples ({', '.join(f'{n} {name}' for name, n in parts)}),"
            f" {dropped} dropped; teacher {usage.calls} calls, {usage.usd:.2f} USD;"
            f" sha256 {curated.manifest.sha256[:12]}"
        )
    if trained:
        loss = "unknown" if trained.loss is None else f"{trained.loss:.4f}"
        yield (
            f"trained: {trained.tokens} tokens, loss {loss}, {trained.too_long} examples too long;"
            f" adapter {trained.adapter_sha256[:12]}"
        )
    if judged:
        gate = "opened" if judged.verdict.promote else "stayed closed"
        yield f"judged: version {judged.version}, the gate {gate}"
    if record.trial:
        trial = record.trial
        yield f"canary: {trial.outcome} since {trial.began:%Y-%m-%d %H:%M} UTC {trial.reason}".rstrip()
        yield from (f"  {line}" for line in trial.evidence)
    if record.ended:
        error = f": {record.ended.error}" if record.ended.error else ""
        yield f"ended after {record.ended.answers} answers{error}"
