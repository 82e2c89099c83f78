"""What curate, train, judge and deploy workers have in common: claim a round in one state, do a step that may
be repeated, move it on."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from typing import ClassVar

from agent.budget import BudgetExceeded, UnpricedModel
from agent.plan import StrategyError
from graphs.curate.plan import CurationError
from graphs.teacher import TeacherMisconfigured, TeacherUnavailable
from loop.workers.decide import changed
from loop.workers.lease import Lease
from loop.workers.messages import Advanced, Postponed
from loop.workers.record import Ended, LoopRound, Part, State, announced
from loop.workers.services import Services
from serving.engine import EngineUnavailable
from streams.log import LogUnavailable
from streams.state.rounds import RoundConflict, Row
from streams.state.store import StoreError, StoreUnavailable
from training.errors import DatasetError, RegistryError, RegistryUnavailable

logger = logging.getLogger(__name__)

TRANSIENT = (TeacherUnavailable, StoreUnavailable, LogUnavailable, RegistryUnavailable, EngineUnavailable)
"""A dependency is away: it comes back by itself."""
NOT_THE_ROUND = (*TRANSIENT, TeacherMisconfigured, UnpricedModel)
"""Nothing is wrong with the round, which waits until the dependency is back or the setting is mended."""
HOPELESS = (CurationError, StrategyError, DatasetError, BudgetExceeded)
"""The round's data cannot be used, or its own cap is reached: the next attempt would find the same."""
ATTEMPTS = 3
FIRST_WAIT_S, WAIT_FACTOR = 5.0, 6.0
LONGEST_OUTAGE_WAIT_S = 60.0


class RoundWorker(ABC):
    """Works on rounds in `STATE`. A crash leaves the round in its state; the next worker does the step again,
    with no second effect.

    So does a failure: the round keeps what was paid for and waits, longer each time. What is not the round's
    fault counts only here, in `failures`, so that the caller can pause; anything else counts in the round,
    and after `ATTEMPTS` failures of one step the round ends as `failed` with what a person must know: the
    champion stays, and the policy decides what comes next. While the step works, the lease is
    renewed; a step whose lease was lost stops at its next checkpoint.
    """

    STATE: ClassVar[State]

    def __init__(self, services: Services, lease_s: float | None = None) -> None:
        self.services = services
        self.failures = 0
        self.waiting: str | None = None  # the round that waits for users or a person
        self._lease_s = lease_s or services.config.rounds.lease_s

    @abstractmethod
    def work(self, round_: LoopRound, lease: Lease) -> float | None:
        """Do the step and advance the round; call `lease.check` between parts of long work.

        A step that waits for what users or a person do returns in how many seconds to look again; until then
        nobody holds the round.
        """

    def step(self) -> bool:
        """Work on one round; False when there was none, or it has to wait."""
        round_ = self.services.rounds.claim(self.STATE, self.services.owner, self._lease_s)
        if round_ is None:
            return False
        try:
            with Lease(self.services.rounds, round_, self._lease_s) as lease:
                pause_s = self.work(round_, lease)
            self.waiting = None if pause_s is None else round_.round_id
            if pause_s is not None:
                self.services.rounds.postpone(round_, pause_s)
        except RoundConflict as exc:
            logger.warning("%s", exc)
        except Exception as exc:
            if _blameless(exc):
                self._wait(round_, exc)
                return False
            logger.exception("round %s failed in state %s", round_.round_id, self.STATE)
            return self._count(round_, exc)
        except BaseException:  # interrupted: the next process need not wait for the lease
            with suppress(RoundConflict, StoreError):
                self.services.rounds.postpone(round_, 0.0)
            raise
        self.failures = 0
        return self.waiting is None

    def advance(self, round_: LoopRound, state: State, part: Part, ledger: Sequence[Row] = ()) -> LoopRound:
        """Move the round on with the part that this step fills, announce it, and tell the listener."""
        event = changed(round_, state, announced(part), self.services.clock.now())
        moved = self.services.rounds.advance(round_, state, round_.record.plus(part), [event], ledger)
        self.services.listen(Advanced(moved))
        return moved

    def run_of(self, round_: LoopRound) -> str:
        """The round's one run in the registry, open. The state store says which it is: of two workers that
        begin one at once (the first lost its lease while it did), the first to bind it. Whoever knows the
        round's run drops all others."""
        rounds, registry = self.services.rounds, self.services.registry
        started = registry.start_run(round_.round_id, round_.run_id)
        try:
            return rounds.bind_run(round_, started)
        finally:
            known = rounds.get(round_.round_id)
            if known is not None and known.run_id is not None:
                registry.drop_other_runs(round_.round_id, known.run_id)

    def _wait(self, round_: LoopRound, exc: Exception) -> None:
        """Leave the round as it is, for a while."""
        wait_s = min(LONGEST_OUTAGE_WAIT_S, 0.5 * 2.0 ** min(self.failures, 10))
        self.failures += 1
        logger.warning("round %s stays %s, tried again in %g s: %s", round_.round_id, self.STATE, wait_s, exc)
        with suppress(RoundConflict, StoreError):
            self.services.rounds.postpone(round_, wait_s)

    def _count(self, round_: LoopRound, exc: Exception) -> bool:
        """A failure of the round's own: try again later, or end it. True when it ended."""
        error, failures = f"{type(exc).__name__}: {exc}", round_.failures + 1
        with suppress(RoundConflict, StoreError):
            if isinstance(exc, HOPELESS) or failures >= ATTEMPTS:
                told = error if isinstance(exc, HOPELESS) else self._given_up(round_, error, failures)
                self._close_run(round_)
                self.advance(round_, "failed", Ended(answers=answers_total(self.services), error=told))
                return True
            wait_s = FIRST_WAIT_S * WAIT_FACTOR ** (failures - 1)
            self.services.rounds.postpone(round_, wait_s, error)
            self.services.listen(Postponed(round_.round_id, failures, error, wait_s))
        return False

    def _close_run(self, round_: LoopRound) -> None:
        """The run of a round that fails says so; one that cannot be reached stays open in MLflow."""
        known = self.services.rounds.get(round_.round_id)
        if known is not None and known.run_id is not None:
            with suppress(RegistryError):
                self.services.registry.finish_run(known.run_id, "FAILED")

    def _given_up(self, round_: LoopRound, error: str, failures: int) -> str:
        kept = self.services.round_dir(round_.round_id)
        return (
            f"gave up in state {self.STATE!r} after {failures} failures, the last: {error}. A person must"
            f" find the cause (the worker's log has the traceback; what was made is kept in {kept}) and mend"
            " it: the policy opens a round for these skills again after a pause, none after three that failed"
        )


def _blameless(exc: Exception) -> bool:
    """Whether an error says nothing of the round; a day's cap is lifted by the next day."""
    return isinstance(exc, NOT_THE_ROUND) or (
        isinstance(exc, BudgetExceeded) and exc.cap.endswith("_per_day")
    )


def answers_total(services: Services) -> int:
    """Answers of the student watched so far, all versions: the policy's clock."""
    return services.store.answers(services.student)
