"""Several reads in one transaction: on PostgreSQL each transaction of its own costs four round trips more."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import sqlalchemy as sa

if TYPE_CHECKING:
    from streams.state.store import StateStore


class Reads(threading.local):
    """The transaction in which this thread reads at present."""

    connection: sa.Connection | None = None


@contextmanager
def reading(store: StateStore) -> Iterator[None]:
    """Until the end, all that this thread reads from the store comes from one transaction; it may still write
    in others. Raises what `StateStore.transaction` raises."""
    outer = store.reads.connection
    with store.transaction(read_only=True) as connection:
        store.reads.connection = connection
        try:
            yield
        finally:
            store.reads.connection = outer
