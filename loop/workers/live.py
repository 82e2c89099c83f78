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
from loop.workers.rest import TRAINING, send_back, wake
from loop.workers.services import Services
from serving.engine import EngineError, EngineUnavailable, LiveEngine, ServedBy
from serving.routes import Replica, RouteFile, RoutesUnusable, RouteTable, Share, drained, resting
from streams.events import Deployed, derived_id
from streams.state.rounds import SERVED

logger = logging.getLogger(__name__)


def lead_users(services: Services, version: int) -> None:
    """Make `version`, which is loaded, stand on the servers, and lead the gateways to it. A version on trial
    against it gets its share, where a server has both.

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
    shares, urls = [Share(version=version, model=standing.model)], standing.ready
    canary = on_trial(services, version)
    if canary is not None and (there := _stand_beside(services, engine, canary)):
        both = tuple(url for url in urls if url in there.ready)
        if both:
            weight = services.config.canary.weight
            shares, urls = [*shares, Share(version=canary, model=there.model, weight=weight)], both
    RouteFile(services.routes).write(
        RouteTable(
            student=services.student,
            shares=tuple(shares),
            replicas=tuple(Replica(url=url) for url in urls),
        )
    )


def on_trial(services: Services, champion: int) -> int | None:
    """The version that is on trial against `champion`. Its round says so: what a crash leaves in the route
    table is set right by whoever writes the table next."""
    if not has_canary(services):
        return None
    for round_ in services.rounds.list(services.student):
        record = round_.record
        if round_.state == "judged" and record.trial is not None and record.trial.outcome == "wait":
            if record.need_trained().parent == champion:
                return record.need_judged().version
    return None


def has_canary(services: Services) -> bool:
    """Whether promotions go through a canary: users are on servers, behind our gateway."""
    config = services.config
    served = isinstance(services.engine, LiveEngine) and config.gateway is not None
    return served and config.canary.enabled


def _stand_beside(services: Services, engine: LiveEngine, canary: int) -> ServedBy | None:
    """Where the canary stands; a canary that cannot leaves the champion alone with the users."""
    try:
        services.load(canary)
        return engine.stand(canary)
    except EngineError as exc:
        logger.warning("the canary, version %d, gets no users: %s", canary, exc)
        return None


def read_table(services: Services) -> RouteTable | None:
    """The route table; None where there is none that can be read."""
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
    4. servers that a dead train worker has left asleep are woken, those restarted while one trains sent back;
    5. versions that are neither champion, its predecessor nor a canary are taken off once no gateway has a
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
        services, vllm = self._services, self._services.config.engine.vllm
        sleeping = bool(vllm.sleepers or resting(services.routes))
        if sleeping and not services.rounds.held(TRAINING):
            wake(services, engine)
        elif vllm.sleepers:
            send_back(services, engine)
            if set(vllm.sleepers) == set(vllm.replicas):
                return  # all sleep, or will: users wait
        champion = services.registry.champion().version
        services.load(champion)
        lead_users(services, champion)
        route = services.rounds.route(services.student)
        if route is None or route[0] != champion:
            set_route(services, champion, Switch(reason="the registry's champion is another one"))
        self._take_off_old(engine, champion)

    def _take_off_old(self, engine: LiveEngine, champion: int) -> None:
        services = self._services
        table, route = read_table(services), services.rounds.route(services.student)
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
