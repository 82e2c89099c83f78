"""One process at a time, of all that share a state store."""

from __future__ import annotations

import fcntl
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa

from streams.state.store import StateStore

_LOCK = 0x5C112


@contextmanager
def alone(store: StateStore, what: str = "") -> Iterator[None]:
    """For what is set up once outside of the store, such as MLflow's database, or done by one process at a
    time, by the name of `what`. Other work on the store is not held up."""
    if store.engine.dialect.name == "postgresql":
        with store.transaction() as connection:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK + zlib.crc32(what.encode()))))
            yield
    elif store.url.database:
        with Path(f"{store.url.database}{what and f'-{what}'}.lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
    else:  # in memory: nobody shares it
        yield
