"""Servers that share a device with training sleep while a round trains on it (`engine.vllm.sleepers`).

Gateways send users to other replicas meanwhile; where there are none, requests wait in the sleeping server
and are answered when it wakes. A train worker that dies leaves its servers asleep: the reconciler wakes them
once nobody holds a round that is being trained.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from loop.workers.record import State
from loop.workers.services import Services
from serving.engine import LiveEngine, StillAsleep
from serving.routes import rest, resting

logger = logging.getLogger(__name__)

TRAINING: State = "curated"
"""The state of a round that waits to be trained, or is."""


@contextmanager
def device_freed(services: Services) -> Iterator[None]:
    """The device is training's while this is entered. Raises what `LiveEngine.sleep` raises. A server that
    does not wake afterwards is no reason to lose what was trained."""
    engine, sleepers = services.engine, services.config.engine.vllm.sleepers
    if not sleepers or not isinstance(engine, LiveEngine):
        yield
        return
    rest(services.routes, sleepers)
    try:
        logger.info("asleep until the round is trained: %s", ", ".join(sleepers))
        engine.sleep()
        yield
    finally:
        wake(services, engine)


def wake(services: Services, engine: LiveEngine) -> None:
    """Let the servers that sleep serve again."""
    try:
        woken = engine.wake()
    except StillAsleep as exc:
        logger.warning("a server does not wake, the deploy worker tries again: %s", exc)
        rest(services.routes, [url for url in resting(services.routes) if url in exc.urls])
        return
    rest(services.routes, ())
    if woken:
        logger.info("awake again: %s", ", ".join(woken))
