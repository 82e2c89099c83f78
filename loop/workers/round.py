"""What curate, train and deploy workers have in common: claim a round in one state, do a step that may be
repeated, move it on."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from graphs.teacher import TeacherUnavailable
from loop.workers.decide import changed
from loop.workers.services import Services
from streams.log import LogUnavailable
from streams.state.rounds import Round, RoundConflict
from streams.state.store import StoreUnavailable
from training.errors import RegistryUnavailable

logger = logging.getLogger(__name__)

LEASE_S = 120.0
TRANSIENT = (TeacherUnavailable, StoreUnavailable, LogUnavailable, RegistryUnavailable)


class RoundWorker(ABC):
    """Works on rounds in `STATE`. A crash leaves the round in its state; the next worker does the step again,
    with no second effect.

    Transient failures leave the round too, and count in `failures` so that the caller can back off. Any other
    failure ends the round as `failed` with its reason: the champion stays, and the policy decides what comes
    next.
    """

    STATE: ClassVar[str]

    def __init__(self, services: Services) -> None:
        self.services = services
        self.failures = 0

    @abstractmethod
    def work(self, round_: Round) -> None:
        """Do the step and advance the round."""

    def step(self) -> bool:
        """Work on one round; False when there was none, or its dependencies are away."""
        now = self.services.clock.now().timestamp()
        round_ = self.services.rounds.claim(self.STATE, self.services.owner, now, LEASE_S)
        if round_ is None:
            return False
        try:
            self.work(round_)
        except TRANSIENT as exc:
            self.failures += 1
            logger.warning("round %s stays %s, will be tried again: %s", round_.round_id, self.STATE, exc)
            return False
        except RoundConflict as exc:
            logger.warning("round %s: %s", round_.round_id, exc)
        except Exception as exc:
            logger.exception("round %s failed in state %s", round_.round_id, self.STATE)
            self._fail(round_, exc)
        self.failures = 0
        return True

    def advance(
        self, round_: Round, state: str, patch: dict[str, Any], ledger: list[dict[str, Any]] | None = None
    ) -> Round:
        """Move the round on, announce it, and tell the listener."""
        moved = self.services.rounds.advance(
            round_, state, patch, [changed(round_, state, _small(patch))], ledger or []
        )
        self.services.listen(state, {"round_id": round_.round_id, **moved.record})
        return moved

    def renew(self, round_: Round) -> None:
        """Keep the round during long work. Raises `RoundConflict` when it was lost."""
        until = self.services.clock.now().timestamp() + LEASE_S
        self.services.rounds.renew(round_.round_id, self.services.owner, until)

    def _fail(self, round_: Round, exc: Exception) -> None:
        error = f"{type(exc).__name__}: {exc}"
        self.advance(round_, "failed", {"error": error, "ended_at_answers": answers_total(self.services)})


def answers_total(services: Services) -> int:
    """Diagnosed answers of the student, all versions: the policy's clock."""
    return sum(counts[0] for key, counts in services.store.buckets(services.student).items() if key[2] == "*")


def _small(patch: dict[str, Any]) -> dict[str, Any]:
    """What of a patch goes into the event: everything but the long lists."""
    return {key: value for key, value in patch.items() if not isinstance(value, list)}
