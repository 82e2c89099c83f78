"""The cost ledger in the state store: rows in, `agent.budget.LedgerEntry` out."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from agent.budget import Activity, LedgerEntry, Usage
from streams.state import tables
from streams.state.store import StateStore


def entry_row(
    entry_id: str,
    student: str,
    round_id: str | None,
    day: str,
    activity: Activity,
    usage: Usage = Usage(),
    seconds: float = 0.0,
) -> dict[str, object]:
    """A row of the ledger's table. The same `entry_id` twice counts once."""
    return row_of(
        LedgerEntry(
            entry_id=entry_id,
            student=student,
            round_id=round_id,
            day=day,
            activity=activity,
            usage=usage,
            seconds=seconds,
        )
    )


def row_of(entry: LedgerEntry) -> dict[str, object]:
    """The row of an entry."""
    return {
        **entry.model_dump(include={"entry_id", "student", "round_id", "day", "activity"}),
        "entry": entry.model_dump_json(),
    }


def book(store: StateStore, entry: LedgerEntry) -> None:
    """Write an entry; one that is there already stays as it is."""
    with store.transaction() as connection:
        store.insert_new(tables.ledger, [row_of(entry)], connection)


def spent_on(store: StateStore, student: str, day: str) -> list[LedgerEntry]:
    """The money of a day, one sum per round and one for monitoring: what several processes' meters look at
    (`graphs.chat.meter`)."""
    column = tables.ledger.c
    if store.engine.dialect.name == "postgresql":
        usd: Any = sa.cast(sa.cast(column.entry, JSONB)["usage"]["usd"].astext, sa.Float)
    else:
        usd = sa.func.json_extract(column.entry, "$.usage.usd")
    query = (
        sa.select(column.round_id, sa.func.sum(usd))
        .where(column.student == student, column.day == day)
        .group_by(column.round_id)
    )
    with store.transaction(read_only=True) as connection:
        return [
            LedgerEntry(
                entry_id=f"{round_id}/{day}",
                student=student,
                round_id=round_id,
                day=day,
                activity="label",
                usage=Usage(usd=money),
            )
            for round_id, money in connection.execute(query)
        ]


def entries(store: StateStore, student: str, rounds_only: bool = False) -> list[LedgerEntry]:
    """What was spent on a student, in a stable order; `rounds_only` leaves out monitoring."""
    query = (
        sa.select(tables.ledger.c.entry)
        .where(tables.ledger.c.student == student)
        .order_by(tables.ledger.c.entry_id)
    )
    if rounds_only:
        query = query.where(tables.ledger.c.round_id.is_not(None))
    with store.transaction(read_only=True) as connection:
        return [LedgerEntry.model_validate_json(text) for text in connection.execute(query).scalars()]


def paid(store: StateStore, student: str) -> Usage:
    """What was paid for a student so far."""
    return sum((entry.usage for entry in entries(store, student)), Usage())
