"""Rounds and routes in the state store: work items with a state machine, and which version of a student is
served.

A round is claimed from the store by state and lease (not from the topic), so a worker that dies leaves it to
the next one; `rounds` and `deployments` only announce what happened (docs/decisions/0002).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from streams.codec import encode
from streams.errors import StreamsError
from streams.events import Event
from streams.state import tables
from streams.state.store import StateStore

ACTIVE = tables.ACTIVE
Record = Mapping[str, Any]


class RoundConflict(StreamsError):
    """A round changed under its worker: the lease was lost, or the state is not the expected one."""


@dataclass(frozen=True)
class Round:
    """One round. `record` holds the decision and what every finished step left (JSON)."""

    round_id: str
    student: str
    number: int
    state: str
    run_id: str | None
    record: dict[str, Any]


class RoundStore:
    """Rounds of all students. Every change is one transaction with the events that announce it."""

    def __init__(self, store: StateStore) -> None:
        self._store = store

    def open(self, round_: Round, event: Event) -> bool:
        """Insert a new round; False when its number is taken or another round of the student is active
        (somebody was first)."""
        table = tables.rounds
        busy = sa.select(sa.func.count()).where(table.c.student == round_.student, table.c.state.in_(ACTIVE))
        row = {
            "round_id": round_.round_id,
            "student": round_.student,
            "number": round_.number,
            "state": round_.state,
            "record": _dump(round_.record),
        }
        try:
            with self._store.transaction() as connection:
                if connection.execute(busy).scalar_one():
                    return False
                connection.execute(table.insert(), row)
                self._store.publish([encode(event)], connection)
        except IntegrityError:
            return False
        return True

    def list(self, student: str) -> list[Round]:
        """All rounds of a student, oldest first."""
        query = (
            sa.select(tables.rounds)
            .where(tables.rounds.c.student == student)
            .order_by(tables.rounds.c.number)
        )
        with self._store.transaction(read_only=True) as connection:
            return [_round(row) for row in connection.execute(query)]

    def get(self, round_id: str) -> Round | None:
        """One round, or None."""
        with self._store.transaction(read_only=True) as connection:
            row = connection.execute(
                sa.select(tables.rounds).where(tables.rounds.c.round_id == round_id)
            ).one_or_none()
        return None if row is None else _round(row)

    def claim(self, state: str, owner: str, now: float, lease_s: float) -> Round | None:
        """Take the oldest round in `state` that nobody works on, for `lease_s` seconds from `now` (epoch
        seconds)."""
        table = tables.rounds
        free = sa.or_(table.c.lease_until.is_(None), table.c.lease_until < now, table.c.lease_owner == owner)
        query = sa.select(table).where(table.c.state == state, free).order_by(table.c.round_id).limit(1)
        with self._store.transaction() as connection:
            row = connection.execute(query).one_or_none()
            if row is None:
                return None
            held = table.update().where(table.c.round_id == row.round_id, table.c.state == state, free)
            taken = connection.execute(held.values(lease_owner=owner, lease_until=now + lease_s))
        return _round(row) if taken.rowcount == 1 else None

    def renew(self, round_id: str, owner: str, until: float) -> None:
        """Keep a claimed round. Raises `RoundConflict` when the lease went to somebody else: stop working on
        it."""
        table = tables.rounds
        with self._store.transaction() as connection:
            kept = connection.execute(
                table.update()
                .where(table.c.round_id == round_id, table.c.lease_owner == owner)
                .values(lease_until=until)
            )
        if kept.rowcount != 1:
            raise RoundConflict(f"round {round_id} is no longer held by {owner}; another worker has it")

    def bind_run(self, round_id: str, run_id: str) -> str:
        """Tie the round to its one MLflow run; returns the run it is tied to (the first that was given)."""
        table = tables.rounds
        with self._store.transaction() as connection:
            connection.execute(
                table.update()
                .where(table.c.round_id == round_id, table.c.run_id.is_(None))
                .values(run_id=run_id)
            )
            return str(
                connection.execute(sa.select(table.c.run_id).where(table.c.round_id == round_id)).scalar_one()
            )

    def advance(
        self, round_: Round, state: str, patch: Record, events: Sequence[Event], ledger: Sequence[Record] = ()
    ) -> Round:
        """Move a round from its state to `state`, merging `patch` into its record and publishing `events`.

        Doing it twice has no second effect. Raises `RoundConflict` when the round is in some other state by
        now.
        """
        table = tables.rounds
        record = {**round_.record, **patch}
        with self._store.transaction() as connection:
            moved = connection.execute(
                table.update()
                .where(table.c.round_id == round_.round_id, table.c.state == round_.state)
                .values(state=state, record=_dump(record), lease_owner=None, lease_until=None)
            )
            if moved.rowcount == 1:
                self._store.insert_new(tables.ledger, ledger, connection)
                self._store.publish([encode(event) for event in events], connection)
        current = self.get(round_.round_id)
        if current is None or current.state != state:
            raise RoundConflict(
                f"round {round_.round_id} is {current.state if current else 'gone'}, "
                f"expected {round_.state} or {state}"
            )
        return current

    def route(self, student: str) -> tuple[int, int | None] | None:
        """(served version, version before it), or None for a student that was never set up."""
        table = tables.routes.c
        with self._store.transaction(read_only=True) as connection:
            row = connection.execute(
                sa.select(table.version, table.previous).where(table.student == student)
            ).one_or_none()
        return None if row is None else (row[0], row[1])

    def set_route(self, student: str, version: int, round_id: str | None, event: Event) -> None:
        """Serve `version` from now on; the version served until now becomes `previous`. A repetition changes
        nothing."""
        table = tables.routes
        with self._store.transaction() as connection:
            row = connection.execute(
                sa.select(table.c.version).where(table.c.student == student)
            ).one_or_none()
            if row is not None and row[0] == version:
                return
            values = {"version": version, "previous": None if row is None else row[0], "round_id": round_id}
            if row is None:
                connection.execute(table.insert().values(student=student, **values))
            else:
                connection.execute(table.update().where(table.c.student == student).values(**values))
            self._store.publish([encode(event)], connection)


def _dump(record: Record) -> str:
    return json.dumps(record, sort_keys=True)


def _round(row: Any) -> Round:
    return Round(row.round_id, row.student, row.number, row.state, row.run_id, json.loads(row.record))
