"""The outbox relay: carries what a transaction decided to publish into the event log.

At least once: a crash between the log's acknowledgement and the deletion sends a row again. Events have deterministic ids, so
their readers drop the copy.
"""

from __future__ import annotations

from streams.crash import CrashPoint, no_crash
from streams.log import EventLog
from streams.store import StateStore

BATCH = 500


class OutboxRelay:
    """Moves outbox rows to the log, oldest first."""

    def __init__(self, store: StateStore, log: EventLog, crash: CrashPoint = no_crash) -> None:
        self._store = store
        self._log = log
        self._crash = crash

    def step(self) -> int:
        """Send everything pending; the number of rows sent. Raises `LogUnavailable`, `StoreUnavailable`: call again later."""
        total = 0
        while rows := self._store.pending(BATCH):
            self._log.append([record for _, record in rows])
            self._crash("outbox.after-append")
            self._store.sent([row_id for row_id, _ in rows])
            total += len(rows)
        return total
