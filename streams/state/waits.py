"""Since when the policy waits for other skills' evidence: a wait that ends must not begin anew with every
process that looks."""

from __future__ import annotations

import sqlalchemy as sa

from streams.state import tables
from streams.state.store import StateStore


def waits_since(store: StateStore, student: str, version: int) -> int | None:
    """The student's total of answers when the last wait of this version began."""
    table = tables.waits.c
    query = sa.select(table.since).where(table.student == student, table.version == version)
    with store.transaction(read_only=True) as connection:
        return connection.execute(query).scalar_one_or_none()


def wait_began(store: StateStore, student: str, version: int, since: int) -> None:
    """A wait of this version began. Two processes may say so at once."""
    table = tables.waits
    row = {"student": student, "version": version, "since": since}
    with store.transaction() as connection:
        store.insert_new(table, [row], connection)
        known = table.update().where(table.c.student == student, table.c.version == version)
        connection.execute(known.values(since=since))
