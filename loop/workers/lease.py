"""Holding a claimed round through long work: a thread renews the lease, the work asks at its checkpoints."""

from __future__ import annotations

import logging
import threading
import time
from types import TracebackType
from typing import Self

from loop.workers.record import LoopRound, LoopRounds
from streams.state.rounds import RoundConflict
from streams.state.store import StoreUnavailable

logger = logging.getLogger(__name__)

RENEWALS = 4  # per lease: three in a row may fail before it runs out


class Lease:
    """Renews the lease of a claimed round while it is entered.

    A process that was frozen wakes in its work, not in the thread that renews: `check` therefore renews by
    itself when that is overdue.
    """

    def __init__(self, rounds: LoopRounds, round_: LoopRound, lease_s: float) -> None:
        self._rounds = rounds
        self._round = round_
        self._lease_s = lease_s
        self._renewed = time.monotonic()
        self._lost: RoundConflict | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"lease of {round_.round_id}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def check(self) -> None:
        """Return while the round is held.

        Raises `RoundConflict` when it was lost, and `StoreUnavailable` when nobody can tell.
        """
        if self._lost is not None:
            raise self._lost
        if time.monotonic() - self._renewed > self._lease_s / 2:
            self._renew()

    def renew(self) -> None:
        """Hold the round for a whole lease from now, before a step that must not be interrupted. Raises as
        `check` does."""
        if self._lost is not None:
            raise self._lost
        self._renew()

    def _renew(self) -> None:
        began = time.monotonic()
        self._rounds.renew(self._round, self._lease_s)
        self._renewed = began

    def _keep(self) -> None:
        while not self._done.wait(self._lease_s / RENEWALS):
            try:
                self._renew()
            except RoundConflict as exc:
                self._lost = exc
                return
            except StoreUnavailable as exc:
                logger.warning("the lease of round %s was not renewed: %s", self._round.round_id, exc)
