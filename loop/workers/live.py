"""What users get: servers, route table and store are made equal to the registry's champion.

Only an engine with servers of its own (`serving.engine.LiveEngine`) has users; for the others the route in
the store is all there is.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Literal

from agent.errors import SkillloopError
from loop.workers.record import LoopRound
from loop.workers.services import Services
from serving.engine import EngineUnavailable, LiveEngine
from serving.routes import Replica, RouteFile, RoutesUnusable, RouteTable, Share, drained
from streams.events import Deployed, derived_id
from streams.state.rounds import SERVED

logger = logging.getLogger(__name__)


def lead_users(services: Services, version: int) -> None:
    """Make `version`, which is loaded, stand on the servers, and lead the gateways to it. Canaries of the
    same champion stay where a server has all of them.

    Raises `EngineUnavailable` when no server has it: users stay with what they have.
    """
    engine = services.engine
    if not isinstance(engine, LiveEngine):
        return
    standing = engine.stand(version)
    for url, reason in standing.wanting.items():
        logger.warning("no user is led to %s: %s", url, reason)
    if not standing.ready:
        raise EngineUnavailable(f"no server serves version {version}: {'; '.join(standing.wanting.values())}")
    canaries = _canaries(services, version)
    ready = set(standing.ready)
    for share in canaries:
        services.load(share.version)
        ready &= set(engine.stand(share.version).ready)
    shares = (Share(version=version, model=standing.model), *canaries)
    RouteFile(services.routes).write(
        RouteTable(
            student=services.student,
            shares=shares if ready else shares[:1],
            replicas=tuple(Replica(url=url) for url in standing.ready if url in ready or not ready),
        )
    )


def _canaries(services: Services, champion: int) -> tuple[Share, ...]:
    table = _table(services)
    return table.shares[1:] if table and table.shares[0].version == champion else ()


def _table(services: Services) -> RouteTable | None:
    try:
        return RouteFile(services.routes).read()
    except RoutesUnusable as exc:
        logger.warning("%s", exc)
        return None


@dataclass(frozen=True)
class Switch:
    """Who brings another version: a round that is held, or the person `by`, for a `reason`."""

    round_: LoopRound | None = None
    action: Literal["promote", "rollback"] = "promote"
    by: str = ""
    reason: str = ""


def set_route(services: Services, version: int, switch: Switch) -> None:
    """Record that `version` is served from now on, and announce it. After a rollback the version before it is
    the registry's `previous`, which the next rollback goes to.

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


class Reconciler:
    """Makes reality equal to the registry's champion: at the start, every `engine.vllm.reconcile_s` seconds,
    and so after a server has restarted, come or gone.

    1. the champion is loaded, and proven, on every server that answers;
    2. the route table leads to the servers that serve it;
    3. a route in the store that says otherwise (a crash, an alias moved in MLflow) is set right;
    4. versions that are neither champion, its predecessor nor a canary are taken off once no gateway has a
       request under way for them.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._due = 0.0

    def step(self) -> None:
        """Reconcile when it is time; what fails is logged and tried again next time."""
        if not isinstance(self._services.engine, LiveEngine) or time.monotonic() < self._due:
            return
        self._due = time.monotonic() + self._services.config.engine.vllm.reconcile_s
        try:
            self.reconcile(self._services.engine)
        except SkillloopError as exc:
            logger.warning("users are not led to the champion yet: %s", exc)

    def reconcile(self, engine: LiveEngine) -> None:
        """Once, now. Raises what servers, registry and store raise."""
        services = self._services
        champion = services.registry.champion().version
        services.load(champion)
        lead_users(services, champion)
        route = services.rounds.route(services.student)
        if route is None or route[0] != champion:
            set_route(services, champion, Switch(reason="the registry's champion is another one"))
        self._take_off_old(engine, champion)

    def _take_off_old(self, engine: LiveEngine, champion: int) -> None:
        services = self._services
        table, route = _table(services), services.rounds.route(services.student)
        if table is None:
            return
        keep = {champion, *(route or ()), *(share.version for share in table.shares)}
        old = [
            model
            for model, version in engine.models().items()
            if version and version not in keep and drained(services.routes, table.revision, model)
        ]
        if old:
            logger.info("taken off the servers: %s", ", ".join(old))
            engine.take_off(old)
