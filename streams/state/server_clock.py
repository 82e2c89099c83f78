"""The wall clock by which events are judged: whether one lies in the future must not depend on the clock of
the worker that happens to read it."""

from __future__ import annotations

from datetime import UTC, datetime

from streams.clock import Clock, SystemClock
from streams.state.store import StateStore


class ServerClock(SystemClock):
    """The time of the store's PostgreSQL server, which all workers share. Raises `StoreUnavailable`."""

    def __init__(self, store: StateStore) -> None:
        self._store = store

    def now(self) -> datetime:
        with self._store.transaction(read_only=True) as connection:
            return datetime.fromtimestamp(self._store.time(connection), UTC)


def judging_clock(store: StateStore, clock: Clock) -> Clock:
    """The server's clock where the store has one and `clock` is a host's. A SQLite file has its host's alone;
    one wound by hand is left as it is."""
    shared = store.engine.dialect.name == "postgresql" and isinstance(clock, SystemClock)
    return ServerClock(store) if shared else clock
