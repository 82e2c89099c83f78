"""Records that did not go through the outbox to the log: refused ones, and dead letters sent again."""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa

from streams.log import Outgoing
from streams.state import tables
from streams.state.store import StateStore


def unsent(store: StateStore) -> int:
    """How many records wait in the outbox for the log to take them."""
    with store.transaction(read_only=True) as connection:
        return int(connection.scalar(sa.select(sa.func.count()).select_from(tables.outbox)) or 0)


def refusals(store: StateStore) -> list[tuple[str, str]]:
    """(topic, the log's answer) of every row that was moved aside."""
    table = tables.refused.c
    with store.transaction(read_only=True) as connection:
        return [(topic, error) for topic, error in connection.execute(sa.select(table.topic, table.error))]


def send_again(store: StateStore, letters: Mapping[str, Outgoing], force: bool = False) -> int:
    """Put records of dead letters, by the letters' ids, into the outbox, each once unless forced."""
    table = tables.redriven
    with store.transaction() as connection:
        known = set(connection.execute(sa.select(table.c.letter_id)).scalars())
        chosen = {name: record for name, record in letters.items() if force or name not in known}
        store.insert_new(table, [{"letter_id": name} for name in chosen], connection)
        store.publish(list(chosen.values()), connection)
    return len(chosen)
