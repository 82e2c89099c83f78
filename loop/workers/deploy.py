"""The deploy worker: a judged round is promoted after proof that its weights are what is served, or
rejected."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

from loop.errors import LoopError
from loop.workers.judge import probe_digest
from loop.workers.lease import Lease
from loop.workers.record import Ended, LoopRound
from loop.workers.round import RoundWorker, answers_total
from loop.workers.services import Services
from streams.events import Deployed, derived_id
from streams.state.rounds import SERVED

logger = logging.getLogger(__name__)


class ProofFailed(LoopError):
    """The engine serves something else than what was judged."""


class DeployWorker(RoundWorker):
    """Order: fetch by hash, load, prove, registry alias, route and event in one transaction, round's end.

    A crash anywhere repeats the steps; each finds its work done.
    """

    STATE = "judged"

    def work(self, round_: LoopRound, lease: Lease) -> None:
        services = self.services
        judged, parent = round_.record.need_judged(), round_.record.need_trained().parent
        if not judged.verdict.promote:
            self.advance(round_, "rejected", Ended(answers=answers_total(services)))
            return
        version, champion = judged.version, services.registry.champion().version
        if champion not in (version, parent):
            reason = f"version {champion} became champion while this round was trained on version {parent}"
            self.advance(round_, "rejected", Ended(answers=answers_total(services), error=reason))
            return
        services.load(version)
        if probe_digest(services, version) != judged.probe:
            raise ProofFailed(
                f"version {version} answers the probe questions unlike the challenger that was judged; "
                "it is not promoted"
            )
        services.crash("deploy.before-alias")
        lease.renew()  # the registry knows no fence: hold the round before its alias moves
        services.registry.promote(version)
        services.crash("deploy.after-alias")
        set_route(services, version, Switch(round_))
        services.crash("deploy.after-route")
        self.advance(round_, "promoted", Ended(answers=answers_total(services)))


@dataclass(frozen=True)
class Switch:
    """Who brings another version: a round that is held, or the person `by`, for a `reason`."""

    round_: LoopRound | None = None
    action: Literal["promote", "rollback"] = "promote"
    by: str = ""
    reason: str = ""


def set_route(services: Services, version: int, switch: Switch) -> None:
    """Serve `version` from now on, and announce it. After a rollback the version before it is the registry's
    `previous`, which the next rollback goes to.

    Raises `RoundConflict` when the round is no longer held.
    """
    round_, now = switch.round_, services.clock.now()
    route = services.rounds.route(services.student)
    event = Deployed(
        event_id=derived_id(
            f"{services.student}/{version}/{round_.round_id if round_ else now.isoformat()}", "deploy"
        ),
        occurred_at=now,
        as_of=round_.record.opened.at if round_ else None,
        student=services.student,
        version=version,
        previous=route[0] if route else None,
        round_id=round_.round_id if round_ else None,
        action=switch.action,
        by=switch.by,
        reason=switch.reason,
    )
    before = services.registry.alias("previous") if switch.action == "rollback" else SERVED
    services.rounds.set_route(services.student, version, round_, event, before)
    why = round_.round_id if round_ else f"{switch.by} {switch.reason}".strip()
    logger.info("version %d of %r is served from now on: %s", version, services.student, why)
