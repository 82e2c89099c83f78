"""Servers that share a device with training sleep while a round trains on it (`engine.vllm.sleepers`).

Gateways send users to other replicas meanwhile; where there are none, requests wait in the sleeping server
and are answered when it wakes. A train worker that dies leaves its servers asleep: the reconciler wakes them
once nobody holds a round that is being trained. One that is restarted meanwhile comes up awake and is sent
back.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from loop.workers.record import LoopRound, State
from loop.workers.services import Services
from serving.engine import EngineError, LiveEngine, StillAsleep
from serving.routes import rest, resting
from streams.state.alone import alone
from streams.state.store import StoreError
from training.device import forget, give_back_memory

logger = logging.getLogger(__name__)

TRAINING: State = "curated"
"""The state of a round that waits to be trained, or is."""
SLEEPERS = "sleepers"
"""Who sends servers to sleep or wakes them is `alone` under this name."""


@contextmanager
def device_freed(services: Services, round_: LoopRound) -> Iterator[None]:
    """The device is training's while this is entered. Raises what `LiveEngine.sleep` raises. A server that
    does not wake afterwards is no reason to lose what was trained."""
    engine, sleepers = services.engine, services.config.engine.vllm.sleepers
    if not sleepers or not isinstance(engine, LiveEngine):
        yield
        return
    try:
        with alone(services.store, SLEEPERS):
            rest(services.routes, sleepers)
            logger.info("asleep until the round is trained: %s", ", ".join(sleepers))
            engine.sleep()
        yield
    except BaseException as exc:
        forget(exc)
        raise
    finally:
        give_back_memory()  # a server that wakes takes all that it had
        wake(services, engine, round_)


def wake(services: Services, engine: LiveEngine, round_: LoopRound | None = None) -> None:
    """Let the servers that sleep serve again, unless somebody trains: another worker `round_`, whose claim
    was lost to it, or where none is named anybody anything. What fails is left to the deploy worker."""
    try:
        with alone(services.store, SLEEPERS):  # no round begins between the look and what follows from it
            if not _trained(services, round_):
                _wake(services, engine)
    except (EngineError, StoreError) as exc:
        logger.warning("a server does not wake, the deploy worker tries again: %s", exc)


def send_back(services: Services, engine: LiveEngine) -> None:
    """Have a server that was restarted while a round trains sleep again. What fails is tried again.

    A round that trains has all of them rest; fewer are those that did not wake after one, and the others
    serve. Needs the folder of routes that the train worker has.
    """
    try:
        with alone(services.store, SLEEPERS):  # whoever wakes them empties the list before another looks
            rest_all = set(services.config.engine.vllm.sleepers) <= set(resting(services.routes))
            if rest_all and services.rounds.held(TRAINING):
                engine.sleep()
    except (EngineError, StoreError) as exc:
        logger.warning("a server may be awake beside the training, the deploy worker tries again: %s", exc)


def _trained(services: Services, round_: LoopRound | None) -> bool:
    if round_ is None:
        return services.rounds.held(TRAINING)
    now = services.rounds.get(round_.round_id)
    return now is not None and now.state == TRAINING and now.owner is not None and now.fence != round_.fence


def _wake(services: Services, engine: LiveEngine) -> None:
    try:
        woken = engine.wake()
    except StillAsleep as exc:
        rest(services.routes, [url for url in resting(services.routes) if url in exc.urls])
        raise
    rest(services.routes, ())
    if woken:
        logger.info("awake again: %s", ", ".join(woken))
