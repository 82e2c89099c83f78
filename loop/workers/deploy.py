"""The deploy worker: a judged round is promoted after proof that its weights are what is served, and after a
canary where users are on servers, or rejected. Between rounds it keeps servers and route table equal to the
registry's champion, and takes back a version that becomes worse."""

from __future__ import annotations

import logging
import time

from agent.errors import SkillloopError
from loop.errors import LoopError
from loop.workers.approve import ask_to_deploy, told
from loop.workers.judge import probe_digest
from loop.workers.lease import Lease
from loop.workers.live import Reconciler, Switch, has_canary, lead_users, read_table, set_route
from loop.workers.record import Ended, LoopRound
from loop.workers.round import RoundWorker, answers_total
from loop.workers.services import Services
from loop.workers.trial import Decline, decline, look
from serving.engine import LiveEngine

logger = logging.getLogger(__name__)


class ProofFailed(LoopError):
    """The engine serves something else than what was judged."""


class DeployWorker(RoundWorker):
    """Order: a person's approval where one is needed, fetch by hash, load (on every server or none), prove,
    canary, registry alias, route table, route and event in one transaction, round's end.

    A crash anywhere repeats the steps; each finds its work done. What the canary's trial has come to is in
    the round's record before it is acted on. The registry's alias decides: before it moves the old version is
    served, after it every start and every reconciliation leads to the new one.
    """

    STATE = "judged"

    def __init__(self, services: Services, lease_s: float | None = None) -> None:
        super().__init__(services, lease_s)
        self._reconciler = Reconciler(services)
        self._look_due = 0.0

    def step(self) -> bool:
        """Work on one round; reconcile, and look after the champion, when it is time."""
        busy = super().step()
        self._reconciler.step()
        if has_canary(self.services) and time.monotonic() >= self._look_due:
            self._look_due = time.monotonic() + self.services.config.canary.look_s
            try:
                self.watch_champion()
            except SkillloopError as exc:
                logger.warning("the champion is not watched: %s", exc)
        return busy

    def work(self, round_: LoopRound, lease: Lease) -> float | None:
        services = self.services
        judged, parent = round_.record.need_judged(), round_.record.need_trained().parent
        if not judged.verdict.promote:
            self._reject(round_)
            return None
        version, champion = judged.version, services.registry.champion().version
        if champion not in (version, parent):
            reason = f"version {champion} became champion while this round was trained on version {parent}"
            self._reject(round_, reason)
            return None
        if services.config.rounds.approve == "deploy":
            decided = ask_to_deploy(services, round_)
            if decided is None:
                return services.config.rounds.look_s
            if not decided.approved:
                self._reject(round_, told(decided))
                return None
        services.load(version)
        self._prove(version, judged.probe)
        if has_canary(services):
            round_ = self._on_trial(round_, parent)
            trial = round_.record.trial
            if trial is None or trial.outcome == "wait":
                return services.config.canary.look_s
            if trial.outcome == "roll back":
                services.load(parent)
                lead_users(services, parent)
                services.crash("deploy.after-withdrawal")
                self._reject(round_, f"canary: {trial.reason}")
                return None
        services.crash("deploy.before-alias")
        lease.renew()  # the registry knows no fence: hold the round before its alias moves
        services.registry.promote(version)
        services.crash("deploy.after-alias")
        lead_users(services, version)
        services.crash("deploy.after-table")
        set_route(services, version, Switch(round_))
        services.crash("deploy.after-route")
        self.advance(round_, "promoted", Ended(answers=answers_total(services)))
        return None

    def _reject(self, round_: LoopRound, reason: str = "") -> None:
        self.advance(round_, "rejected", Ended(answers=answers_total(self.services), error=reason))

    def _on_trial(self, round_: LoopRound, parent: int) -> LoopRound:
        """One look at the canary. Its beginning is in the record before a user meets it, its end before
        anything follows from it."""
        services, trial = self.services, round_.record.trial
        if trial is not None and trial.outcome != "wait":
            return round_
        seen = look(services, round_)
        if seen != trial:
            round_ = services.rounds.note(round_, round_.record.plus(seen))
        services.crash("deploy.canary")
        if seen.outcome == "wait":
            self._let_in(parent, round_.record.need_judged().version)
        else:
            logger.info("canary of round %s: %s, %s", round_.round_id, seen.outcome, seen.reason)
        return round_

    def _let_in(self, champion: int, canary: int) -> None:
        """Lead the canary's share of the users to it; the reconciler keeps it so."""
        table = read_table(self.services)
        if table is None or canary not in [share.version for share in table.shares]:
            self.services.load(champion)
            lead_users(self.services, champion)

    def watch_champion(self) -> None:
        """Take a promoted version back that has become worse; a person is told by an alert."""
        declined = decline(self.services)
        if declined is not None:
            self._take_back(declined)

    def _take_back(self, declined: Decline) -> None:
        services, version = self.services, declined.to
        if services.registry.champion().version != declined.version:
            return  # a person has switched, or another worker has done this: the reconciler sees to the rest
        logger.error("version %d is rolled back: %s", declined.version, declined.reason)
        services.store.publish_once(declined.alert)
        services.load(version)
        services.registry.rollback(declined.version, version)
        services.crash("deploy.rolled-back")
        lead_users(services, version)
        set_route(services, version, Switch(action="rollback", by="deploy worker", reason=declined.reason))

    def _prove(self, version: int, probe: str) -> None:
        """The engine in this process must answer as the challenger did. Servers have proved themselves while
        they loaded, by log-probabilities: their greedy answers may change with what else is in a batch."""
        services = self.services
        if not isinstance(services.engine, LiveEngine) and probe_digest(services, version) != probe:
            raise ProofFailed(
                f"version {version} answers the probe questions unlike the challenger that was judged; "
                "it is not promoted"
            )
