"""What a round leaves behind: one frozen part for each step, and the reader of records that an earlier
version wrote.

The state store keeps a record as JSON and knows nothing of its form (`streams.state.rounds`).
"""

from __future__ import annotations

import json
from datetime import datetime
from functools import lru_cache
from typing import Literal, TypeVar

from pydantic import Field

from agent.canary import Arm, Outcome
from agent.decision import Decision
from agent.items import Frozen, JsonObject
from agent.posterior import SkillEstimate
from graphs.curate.plan import CurationReport
from streams.state.rounds import Round, RoundStore
from streams.state.store import StateStore
from training.mix import DatasetManifest
from training.verdict import GateVerdict

State = Literal["planned", "curated", "trained", "judged", "promoted", "rejected", "failed"]
SCHEMA_VERSION = 2
PartT = TypeVar("PartT", bound=Frozen)


class Opened(Frozen):
    """What the policy saw when it opened the round. `champion` is the served version, `at` event time,
    `answers` the student's total of diagnosed answers, `held_out` the version of the held-out set that the
    round is judged on."""

    champion: int
    at: datetime
    answers: int
    held_out: int = 0
    profile: tuple[SkillEstimate, ...] = ()


class Curated(Frozen):
    """The data set, how it came about, and the pool items it took."""

    manifest: DatasetManifest
    report: CurationReport
    used: tuple[str, ...] = ()


class Trained(Frozen):
    """The adapter. `parent` is the version it was trained on; `directory` holds it, inside the round's own,
    where it was trained; `too_long` examples exceeded `max_length` and were left out. `data_sha256` and
    `curve_sha256` are the stored data as trained and the trainer's report (empty: an earlier version's)."""

    adapter_sha256: str
    tokens: int
    loss: float | None
    parent: int
    directory: str = "sft"
    too_long: int = 0
    data_sha256: str = ""
    curve_sha256: str = ""


class Judged(Frozen):
    """The model version, the gate's verdict, the change of held-out accuracy per skill, the digest of the
    challenger's answers to the probe questions, and the hashes of the stored evaluations of the parent and
    the challenger (empty: an earlier version's)."""

    version: int
    verdict: GateVerdict
    gains: dict[str, float]
    probe: str
    run_id: str
    before_sha256: str = ""
    after_sha256: str = ""


class Requests(Frozen):
    """Requests of one version as the gateways counted them: those that ended, and of them failed and slow
    ones."""

    ended: int = 0
    failed: int = 0
    slow: int = 0

    def since(self, before: Requests) -> Requests:
        """What came after `before`."""
        return Requests(
            ended=max(0, self.ended - before.ended),
            failed=max(0, self.failed - before.failed),
            slow=max(0, self.slow - before.slow),
        )

    def plus(self, more: Requests) -> Requests:
        """The sum."""
        return Requests(
            ended=self.ended + more.ended, failed=self.failed + more.failed, slow=self.slow + more.slow
        )


class Trial(Frozen):
    """The canary, while it is on trial and after. `began` and `decided` are the loop's clock.

    `seen` is what each gateway had counted at the last look, `requests` what came of it in each time bucket;
    how the answers were judged is in the store's profile. `reason` says why the outcome is what it is,
    `evidence` what is known of each outcome, in words; `reference` is the champion's part of difficult
    answers meanwhile (None: none was judged).
    """

    began: datetime
    outcome: Outcome = "wait"
    reason: str = ""
    evidence: tuple[str, ...] = ()
    reference: float | None = None
    decided: datetime | None = None
    seen: dict[str, dict[Arm, Requests]] = Field(default_factory=dict)
    requests: dict[int, dict[Arm, Requests]] = Field(default_factory=dict)


class Ended(Frozen):
    """When it ended, by the student's total of diagnosed answers; `error` says why, unless the gate does."""

    answers: int
    error: str = ""


Part = Curated | Trained | Judged | Trial | Ended
FIELDS: dict[type[Part], str] = {
    Curated: "curated",
    Trained: "trained",
    Judged: "judged",
    Trial: "trial",
    Ended: "ended",
}
LEFT_OUT = {"used", "profile", "directory", "curve_sha256"}
"""What events do not carry: long lists, which attempt it was, and how fast."""


class RoundParts(Frozen):
    """A round's record; each worker fills its own part."""

    schema_version: Literal[2] = 2
    decision: Decision
    opened: Opened
    curated: Curated | None = None
    trained: Trained | None = None
    judged: Judged | None = None
    trial: Trial | None = None
    ended: Ended | None = None

    def plus(self, part: Part) -> RoundParts:
        """This record with one more part."""
        return self.model_copy(update={FIELDS[type(part)]: part})

    @property
    def skills(self) -> tuple[str, ...]:
        """The skills that the round teaches."""
        return tuple(target.skill for target in self.decision.skills)

    def need_curated(self) -> Curated:
        """The part that curation fills. Raises `LookupError` when it is not there."""
        return _need(self.curated, "curated")

    def need_trained(self) -> Trained:
        """The part that training fills. Raises `LookupError` when it is not there."""
        return _need(self.trained, "trained")

    def need_judged(self) -> Judged:
        """The part that judging fills. Raises `LookupError` when it is not there."""
        return _need(self.judged, "judged")


LoopRound = Round[RoundParts]
LoopRounds = RoundStore[RoundParts]


def announced(part: Part | Decision) -> JsonObject:
    """A part as the detail of the event that announces it."""
    detail = part.model_dump(mode="json", exclude=LEFT_OUT)
    return {"decision": detail} if isinstance(part, Decision) else detail


def open_rounds(store: StateStore) -> LoopRounds:
    """The store's rounds, with their records read by `parse_record`."""
    return RoundStore(store, parse_record)


@lru_cache(maxsize=256)
def parse_record(text: str) -> RoundParts:
    """A stored record, of this version or of the one before, which had no parts and no version.

    Raises `ValueError`, `LookupError` or `TypeError` for what is neither.
    """
    value = json.loads(text)
    if isinstance(value, dict) and value.get("schema_version", SCHEMA_VERSION) != SCHEMA_VERSION:
        raise ValueError(
            f"schema version {value['schema_version']}; this program reads up to {SCHEMA_VERSION}"
        )
    return RoundParts.model_validate(value if "schema_version" in value else _parted(value))


def _parted(flat: JsonObject) -> JsonObject:
    """The parts of a record of schema version 1: one flat object, to which each step added its keys."""
    parts: JsonObject = {
        "decision": flat["decision"],
        "opened": {
            "champion": flat["champion"],
            "at": flat["decided_at"],
            "answers": flat["decided_at_answers"],
            "profile": flat.get("profile", ()),
        },
    }
    if "manifest" in flat:
        parts["curated"] = {
            "manifest": flat["manifest"], "report": flat["curation"], "used": flat["used"],
        }  # fmt: skip
    if "adapter_sha256" in flat:
        parts["trained"] = {key: flat[key] for key in ("adapter_sha256", "tokens", "loss")}
        parts["trained"]["parent"] = flat["trained_from"]
    if "verdict" in flat:
        parts["judged"] = {key: flat[key] for key in ("version", "verdict", "gains", "probe", "run_id")}
    if "ended_at_answers" in flat:
        parts["ended"] = {"answers": flat["ended_at_answers"], "error": flat.get("error", "")}
    return parts


def _need(part: PartT | None, name: str) -> PartT:
    if part is None:
        raise LookupError(f"the round's record has no part {name!r}, which its state promises")
    return part
