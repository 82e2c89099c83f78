"""The whole loop in one process: every worker takes its turn, in a fixed order, so the same events give the
same decisions."""

from __future__ import annotations

from loop.wiring import round_workers
from loop.workers.monitor import MonitorWorker
from loop.workers.services import Services
from streams.backlog import Backlog
from streams.log import EventLog
from streams.state.rounds import ACTIVE


class Embedded:
    """All workers of one student. `settle` runs them until nothing is left to do."""

    def __init__(self, services: Services, log: EventLog) -> None:
        self.services = services
        self.log = log
        self.monitor = MonitorWorker(services, log)
        self.rounds = round_workers(services)

    def step(self) -> bool:
        """One turn for every worker; False when all of them were idle."""
        busy = self.monitor.step()
        for worker in self.rounds:
            busy = worker.step() or busy
        self.monitor.send()
        return busy

    def active(self) -> bool:
        """Whether a round is under way that does not wait for users or a person."""
        waiting = {worker.waiting for worker in self.rounds}
        rounds = self.services.rounds.list(self.services.student)
        return any(round_.state in ACTIVE and round_.round_id not in waiting for round_ in rounds)

    def settle(self) -> None:
        """Work until the log is consumed and no round is under way. Failing dependencies are waited for, with
        back-off."""
        while True:
            while self.step():
                pass
            if not self.active() and not self.monitor.loop.waiting:
                return
            self._pause()

    def catch_up(self, backlog: Backlog) -> None:
        """Work until a backlog is in the store and a whole turn has begun and ended without a round under
        way; failing dependencies are waited for. Raises `BacklogStuck`."""
        while True:
            was_active = self.active()
            busy = self.step()
            done = backlog.done(self.services.store, self.monitor.loop.waiting or busy or was_active)
            if done and not was_active and not self.active():
                return
            if not busy and done:
                self._pause()

    def _pause(self) -> None:
        failures = max(worker.failures for worker in self.rounds)
        self.monitor.pause(min(30.0, 0.5 * 2.0 ** min(failures, 6)))
