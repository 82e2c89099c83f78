"""The cost ledger in the state store: rows in, `agent.budget.LedgerEntry` out."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

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
    """What was spent on a day, one sum per round and activity: enough for `agent.budget` and for what several
    processes' meters look at (`graphs.chat.meter`).

    A round of the day that began on an earlier one has an empty line of that day. Costs a few rows, however
    long the ledger is.
    """
    sums, earlier = tables.ledger_sums.c, tables.ledger_sums.alias().c
    began = (
        sa.select(sa.func.min(earlier.day))
        .where(earlier.student == student, earlier.round_id == sums.round_id, sums.round_id != "")
        .scalar_subquery()
    )
    query = sa.select(sums.round_id, sums.activity, sums.usd, sums.seconds, began).where(
        sums.student == student, sums.day == day
    )
    with store.transaction(read_only=True) as connection:
        rows = connection.execute(query).all()
    lines = [_line(student, day, row[0], row[1], usage=Usage(usd=row[2]), seconds=row[3]) for row in rows]
    begun = {row[0]: row[4] for row in rows if row[4] is not None and row[4] < day}
    return lines + [_line(student, before, round_id, "label") for round_id, before in begun.items()]


def _line(student: str, day: str, round_id: str, activity: str, **sums: Any) -> LedgerEntry:
    names = {"student": student, "day": day, "activity": activity, "round_id": round_id or None}
    return LedgerEntry.model_validate({"entry_id": f"{round_id}/{day}/{activity}", **names, **sums})


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
