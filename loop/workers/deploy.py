"""The deploy worker: a judged round is promoted after proof that its weights are what is served, or
rejected. Between rounds it keeps servers and route table equal to the registry's champion."""

from __future__ import annotations

from loop.errors import LoopError
from loop.workers.judge import probe_digest
from loop.workers.lease import Lease
from loop.workers.live import Reconciler, Switch, lead_users, set_route
from loop.workers.record import Ended, LoopRound
from loop.workers.round import RoundWorker, answers_total
from loop.workers.services import Services
from serving.engine import LiveEngine


class ProofFailed(LoopError):
    """The engine serves something else than what was judged."""


class DeployWorker(RoundWorker):
    """Order: fetch by hash, load (on every server or none), prove, registry alias, route table, route and
    event in one transaction, round's end.

    A crash anywhere repeats the steps; each finds its work done. The registry's alias decides: before it
    moves the old version is served, after it every start and every reconciliation leads to the new one.
    """

    STATE = "judged"

    def __init__(self, services: Services, lease_s: float | None = None) -> None:
        super().__init__(services, lease_s)
        self._reconciler = Reconciler(services)

    def step(self) -> bool:
        """Work on one round, and reconcile when it is time."""
        busy = super().step()
        self._reconciler.step()
        return busy

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
        self._prove(version, judged.probe)
        services.crash("deploy.before-alias")
        lease.renew()  # the registry knows no fence: hold the round before its alias moves
        services.registry.promote(version)
        services.crash("deploy.after-alias")
        lead_users(services, version)
        services.crash("deploy.after-table")
        set_route(services, version, Switch(round_))
        services.crash("deploy.after-route")
        self.advance(round_, "promoted", Ended(answers=answers_total(services)))

    def _prove(self, version: int, probe: str) -> None:
        """The engine in this process must answer as the challenger did. Servers have proved themselves while
        they loaded, by log-probabilities: their greedy answers may change with what else is in a batch."""
        services = self.services
        if not isinstance(services.engine, LiveEngine) and probe_digest(services, version) != probe:
            raise ProofFailed(
                f"version {version} answers the probe questions unlike the challenger that was judged; "
                "it is not promoted"
            )
