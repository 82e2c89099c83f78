"""One line for each state that a round reaches."""

from __future__ import annotations

from loop.workers.record import LoopRound, RoundParts
from training.gate import GateVerdict

SHOWN_REASONS = 2


def round_line(round_: LoopRound) -> tuple[str, str]:
    """What happened to the round, and in which style it is shown."""
    told, style = _told(round_)
    return f"{round_.round_id}: {told}", style


def _told(round_: LoopRound) -> tuple[str, str]:
    record = round_.record
    match round_.state:
        case "curated":
            return _curated(record), ""
        case "trained":
            return _trained(record), ""
        case "judged":
            return _gate(record.need_judged().verdict)
        case "promoted":
            version = record.need_judged().version
            return f"version {version} is champion and serves from now on", "bold green"
        case "rejected":
            return "rejected, the champion stays", "bold red"
    return f"{round_.state}: {record.ended.error if record.ended else ''}", "bold red"


def _curated(record: RoundParts) -> str:
    made = record.need_curated()
    dropped = dict(made.report.dropped)
    return f"{made.manifest.examples} examples {made.manifest.per_strategy}, dropped {dropped}"


def _trained(record: RoundParts) -> str:
    made = record.need_trained()
    left_out = f", {made.too_long} examples too long and left out" if made.too_long else ""
    loss = "not reported" if made.loss is None else f"{made.loss:.3f}"
    return f"trained {record.decision.steps} steps, {made.tokens} tokens, loss {loss}{left_out}"


def _gate(verdict: GateVerdict) -> tuple[str, str]:
    shown, more = verdict.reasons[:SHOWN_REASONS], len(verdict.reasons) - SHOWN_REASONS
    told = "; ".join(shown) + (f"; and {more} more reasons" if more > 0 else "")
    return (f"gate open: {told}", "green") if verdict.promote else (f"gate closed: {told}", "red")
