"""Which replica answers: the one with the fewest requests under way among those that work."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from serving.routes import Replica


@dataclass
class _Health:
    in_flight: int = 0
    failures: int = 0
    until: float = 0.0
    lost: dict[str, float] = field(default_factory=dict)


class Balancer:
    """Requests under way and failures of each replica. A replica that fails is left out for `eject_s`, twice
    as long after each further failure, up to `max_eject_s`; where all are left out, the one that returns
    first is tried. One that has lost a model (restarted, not yet reconciled) is left out for that model."""

    def __init__(self, eject_s: float, max_eject_s: float, now: Callable[[], float] = time.monotonic) -> None:
        self._eject_s, self._max_eject_s, self._now = eject_s, max_eject_s, now
        self._health: dict[str, _Health] = {}
        self._turn = 0

    def pick(self, replicas: Collection[Replica], model: str, tried: Collection[str]) -> str | None:
        """The replica to ask now; None when all were tried."""
        now, best = self._now(), None
        self._turn += 1
        for place, replica in enumerate(replicas):
            if replica.url in tried:
                continue
            health = self._health.setdefault(replica.url, _Health())
            until = max(health.until, health.lost.get(model, 0.0))
            key = (max(0.0, until - now), health.in_flight, (place + self._turn) % len(replicas))
            if best is None or key < best[0]:
                best = (key, replica.url)
        return best[1] if best else None

    def began(self, url: str) -> None:
        """A request is under way."""
        self._health[url].in_flight += 1

    def ended(self, url: str) -> None:
        """A request is no longer under way."""
        self._health[url].in_flight -= 1

    def worked(self, url: str, model: str) -> None:
        """A replica answered as it should."""
        health = self._health[url]
        if health.failures or health.lost:
            health.failures, health.until = 0, 0.0
            health.lost.pop(model, None)

    def failed(self, url: str) -> None:
        """A replica could not be reached, broke off or said that it is broken."""
        health = self._health[url]
        health.failures += 1
        pause = min(self._max_eject_s, self._eject_s * 2.0 ** min(health.failures - 1, 16))
        health.until = self._now() + pause

    def lost(self, url: str, model: str) -> None:
        """A replica does not know a model that the table says it serves."""
        self._health[url].lost[model] = self._now() + self._eject_s
