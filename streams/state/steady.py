"""Time for leases in a SQLite store, which has only its host's clock: one that runs evenly when somebody sets
the host's.

It is the time since boot, plus an offset that the first process of a boot takes from the wall clock and
writes into the store for all others. (PostgreSQL has its server's clock.)
"""

from __future__ import annotations

import time
from collections.abc import Callable

import sqlalchemy as sa

from streams.clock import boot_id, since_boot
from streams.state import tables


def steady_time(connection: sa.Connection) -> Callable[[], float]:
    """The store's clock, in epoch seconds; the host's where the system does not tell one boot from another.
    Called inside a transaction that may write."""
    boot = boot_id()
    if boot is None:
        return time.time
    table = tables.steady_clock
    row = connection.execute(sa.select(table)).one_or_none()
    if row is not None and row.boot_id == boot:
        offset = row.offset_s
    else:
        offset = time.time() - since_boot()
        connection.execute(table.delete())
        connection.execute(table.insert().values(boot_id=boot, offset_s=offset))
    return lambda: offset + since_boot()
