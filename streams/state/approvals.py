"""What waits for a person's decision, and what the person decided. A decision is of what was asked: when
something else is asked in its place (another `digest`), it is asked anew."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa

from agent.items import JsonObject
from streams.state import tables
from streams.state.store import StateStore

Subject = Literal["data", "deploy"]


@dataclass(frozen=True)
class ApprovalAsked:
    """A question to a person: whether a round's data may be trained on, or its version be deployed. `shown`
    is what the person sees (plain JSON), `digest` names what the decision is about."""

    round_id: str
    student: str
    subject: Subject
    digest: str
    at: datetime
    shown: JsonObject


@dataclass(frozen=True)
class Decided:
    """What `by` decided, and why."""

    approved: bool
    by: str
    reason: str


class ApprovalStore:
    """Questions to people and their answers, in the state store."""

    def __init__(self, store: StateStore) -> None:
        self._store = store

    def ask(self, asked: ApprovalAsked) -> Decided | None:
        """The decision; None while there is none. Asking again changes nothing."""
        table = tables.approvals
        row = {
            "round_id": asked.round_id,
            "subject": asked.subject,
            "student": asked.student,
            "digest": asked.digest,
            "asked": asked.at.isoformat(),
            "shown": json.dumps(dict(asked.shown)),
        }
        this = sa.and_(table.c.round_id == asked.round_id, table.c.subject == asked.subject)
        with self._store.transaction() as connection:
            self._store.insert_new(table, [row], connection)
            known = connection.execute(sa.select(table).where(this)).one()
            if known.digest == asked.digest:
                return _decision(known)
            undecided = {"approved": None, "decided_by": None, "reason": None}
            connection.execute(table.update().where(this).values(**row, **undecided))
        return None

    def pending(self, student: str) -> list[ApprovalAsked]:
        """What waits for a decision, oldest first."""
        table = tables.approvals.c
        query = sa.select(tables.approvals).where(table.student == student, table.approved.is_(None))
        with self._store.transaction(read_only=True) as connection:
            rows = connection.execute(query.order_by(table.asked, table.round_id)).all()
        return [_asked(row) for row in rows]

    def decide(self, asked: ApprovalAsked, decided: Decided) -> bool:
        """Write a decision; False when somebody has decided already, or something else is asked by now."""
        table = tables.approvals
        with self._store.transaction() as connection:
            written = connection.execute(
                table.update()
                .where(
                    table.c.round_id == asked.round_id,
                    table.c.subject == asked.subject,
                    table.c.digest == asked.digest,
                    table.c.approved.is_(None),
                )
                .values(approved=int(decided.approved), decided_by=decided.by, reason=decided.reason)
            )
        return written.rowcount == 1


def _asked(row: Any) -> ApprovalAsked:
    at = datetime.fromisoformat(row.asked)
    return ApprovalAsked(row.round_id, row.student, row.subject, row.digest, at, json.loads(row.shown))


def _decision(row: Any) -> Decided | None:
    return None if row.approved is None else Decided(bool(row.approved), row.decided_by, row.reason)
