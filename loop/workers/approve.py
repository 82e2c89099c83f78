"""Questions to a person: whether a round's data may be trained on, whether its version may be deployed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.chance import ordered
from agent.items import JsonObject
from graphs.curate.plan import Curation
from loop.workers.record import LoopRound, LoopRounds
from streams.files import text_sha256
from streams.state.approvals import ApprovalAsked, ApprovalStore, Decided, Subject
from streams.state.rounds import ACTIVE
from streams.state.store import StateStore

if TYPE_CHECKING:  # `status` loads no model's libraries
    from loop.workers.services import Services

SAMPLES = 20
"""Of a data set, a person is shown so many examples, drawn at random."""


def ask_for_data(services: Services, round_: LoopRound, curation: Curation) -> Decided | None:
    """A person's decision on a data set; None while there is none."""
    examples = {example.example_id: example for example in curation.examples}
    drawn = ordered(examples, services.config.seed, round_.round_id, "shown")[:SAMPLES]
    shown = {
        "examples": len(examples),
        "report": curation.report.model_dump(mode="json"),
        "samples": [examples[name].model_dump(mode="json") for name in drawn],
    }
    digest = text_sha256(*(example.model_dump_json() for example in curation.examples))
    return _ask(services, round_, "data", digest, shown)


def ask_to_deploy(services: Services, round_: LoopRound) -> Decided | None:
    """A person's decision on a version that the gate let through; None while there is none."""
    judged = round_.record.need_judged()
    digest = text_sha256(str(judged.version), round_.record.need_trained().adapter_sha256)
    return _ask(services, round_, "deploy", digest, {"version": judged.version})


def _ask(
    services: Services, round_: LoopRound, subject: Subject, digest: str, shown: JsonObject
) -> Decided | None:
    asked = ApprovalAsked(round_.round_id, round_.student, subject, digest, services.clock.now(), shown)
    return ApprovalStore(services.store).ask(asked)


def waiting(store: StateStore, rounds: LoopRounds, student: str) -> list[ApprovalAsked]:
    """What waits for a person, of rounds that are still under way."""
    active = {round_.round_id for round_ in rounds.list(student) if round_.state in ACTIVE}
    return [asked for asked in ApprovalStore(store).pending(student) if asked.round_id in active]


def told(decided: Decided) -> str:
    """A decision in words."""
    return f"{'approved' if decided.approved else 'rejected'} by {decided.by}: {decided.reason}"
