"""Rounds and routes in the state store: work items with a state machine, and which version of a student is
served.

A round is claimed from the store by state and lease (not from the topic), so a worker that dies leaves it to
the next one; `rounds` and `deployments` only announce what happened (docs/decisions/0002). Each claim raises
the round's fence, and every change compares owner and fence: a worker that was frozen past its lease cannot
touch what its successor holds (docs/decisions/0029).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, TypeVar

import sqlalchemy as sa
from pydantic import BaseModel
from sqlalchemy.exc import IntegrityError

from streams.clock import Clock
from streams.codec import encode
from streams.errors import StreamsError
from streams.events import Event
from streams.state import tables
from streams.state.store import StateStore

logger = logging.getLogger(__name__)

ACTIVE = tables.ACTIVE
LONGEST_WAIT_S = 3600.0
"""A lease or a pause that ends later than this from now was written before the clock was set back: it is
over."""
Served = Literal["served"]
SERVED: Served = "served"
Row = Mapping[str, Any]
RecordT = TypeVar("RecordT", bound=BaseModel)


class RoundConflict(StreamsError):
    """A round changed under its worker: the lease was lost, or the state is not the expected one."""


class UnreadableRecord(StreamsError):
    """A stored round whose record is damaged, or which a newer version wrote."""


@dataclass(frozen=True)
class Round(Generic[RecordT]):
    """One round. `record` holds the decision and what every finished step left.

    `owner` and `fence` are the claim that this value was read under: a change is written only while they are
    the store's. `failures` counts attempts at the present state that failed, `error` is the last one's.
    """

    round_id: str
    student: str
    number: int
    state: str
    run_id: str | None
    record: RecordT
    owner: str | None = None
    fence: int = 0
    failures: int = 0
    error: str | None = None


class RoundStore(Generic[RecordT]):
    """Rounds of all students. Every change is one transaction with the events that announce it.

    `parse` reads a stored record. `clock` replaces the database's time for leases and pauses, in tests.

    A round whose record cannot be read is named in the process's log and set aside: `list` and `claim` leave
    it out, `get` raises. One that is under way still keeps its student from the next round, since a newer
    version of the program may be working on it; `discard` ends it.
    """

    def __init__(
        self, store: StateStore, parse: Callable[[str], RecordT], clock: Clock | None = None
    ) -> None:
        self._store = store
        self._parse = parse
        self._clock = clock
        self._named: set[str] = set()

    def open(self, round_: Round[RecordT], event: Event) -> bool:
        """Insert a new round; False when its number is taken or another round of the student is active
        (somebody was first)."""
        table = tables.rounds
        busy = sa.select(sa.func.count()).where(table.c.student == round_.student, table.c.state.in_(ACTIVE))
        row = {
            "round_id": round_.round_id,
            "student": round_.student,
            "number": round_.number,
            "state": round_.state,
            "record": round_.record.model_dump_json(),
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

    def list(self, student: str) -> list[Round[RecordT]]:
        """All rounds of a student, oldest first."""
        query = (
            sa.select(tables.rounds)
            .where(tables.rounds.c.student == student)
            .order_by(tables.rounds.c.number)
        )
        with self._store.transaction(read_only=True) as connection:
            rows = connection.execute(query).all()
        return [round_ for row in rows if (round_ := self._readable(row)) is not None]

    def unreadable(self, student: str) -> dict[str, str]:
        """The student's rounds that `list` leaves out, each with the reason."""
        query = sa.select(tables.rounds).where(tables.rounds.c.student == student)
        with self._store.transaction(read_only=True) as connection:
            rows = connection.execute(query.order_by(tables.rounds.c.number)).all()
        reasons = {}
        for row in rows:
            try:
                self._record(row)
            except UnreadableRecord as exc:
                reasons[row.round_id] = str(exc)
        return reasons

    def discard(self, round_id: str) -> bool:
        """End an unreadable round that is under way as failed, with its record as it is; False when it is not
        under way, or can be read."""
        table = tables.rounds.c
        with self._store.transaction() as connection:
            query = sa.select(tables.rounds).where(table.round_id == round_id, table.state.in_(ACTIVE))
            row = connection.execute(query).one_or_none()
            if row is None or self._readable(row) is not None:
                return False
            free = {"lease_owner": None, "lease_until": None, "fence": table.fence + 1}
            connection.execute(
                tables.rounds.update().where(table.round_id == round_id).values(state="failed", **free)
            )
        return True

    def next_number(self, student: str) -> int:
        """The number of the student's next round; those that cannot be read count too."""
        table = tables.rounds.c
        query = sa.select(sa.func.coalesce(sa.func.max(table.number), 0)).where(table.student == student)
        with self._store.transaction(read_only=True) as connection:
            return int(connection.execute(query).scalar_one()) + 1

    def get(self, round_id: str) -> Round[RecordT] | None:
        """One round, or None."""
        with self._store.transaction(read_only=True) as connection:
            row = connection.execute(
                sa.select(tables.rounds).where(tables.rounds.c.round_id == round_id)
            ).one_or_none()
        return None if row is None else self._round(row)

    def claim(self, state: str, owner: str, lease_s: float) -> Round[RecordT] | None:
        """Take the oldest round in `state` that is free and need not wait, for `lease_s` seconds.

        An owner's own claim can be repeated: the fence of the latest is the one that counts.
        """
        table = tables.rounds.c
        with self._store.transaction() as connection:
            now = self._now(connection)
            free = sa.or_(_over(table.lease_until, now), table.lease_owner == owner)
            due = sa.and_(table.state == state, free, _over(table.not_before, now))
            rows = connection.execute(sa.select(tables.rounds).where(due).order_by(table.round_id)).all()
            row = next((row for row in rows if self._readable(row) is not None), None)
            if row is None:
                return None
            held = tables.rounds.update().where(table.round_id == row.round_id, due)
            taken = connection.execute(
                held.values(lease_owner=owner, lease_until=now + lease_s, fence=table.fence + 1)
            )
            if taken.rowcount != 1:
                return None
            row = connection.execute(sa.select(tables.rounds).where(table.round_id == row.round_id)).one()
        return self._round(row)

    def held(self, state: str) -> bool:
        """Whether somebody works on a round in `state`, of whichever student."""
        table = tables.rounds.c
        with self._store.transaction(read_only=True) as connection:
            free = _over(table.lease_until, self._now(connection))
            query = sa.select(sa.func.count()).where(table.state == state, sa.not_(free))
            return bool(connection.execute(query).scalar_one())

    def renew(self, round_: Round[RecordT], lease_s: float) -> None:
        """Keep a claimed round for `lease_s` seconds from now. Raises `RoundConflict` when the claim is no
        longer valid: stop working on it."""
        with self._store.transaction() as connection:
            until = self._now(connection) + lease_s
            kept = connection.execute(tables.rounds.update().where(_held(round_)).values(lease_until=until))
        if kept.rowcount != 1:
            raise _lost(round_)

    def postpone(self, round_: Round[RecordT], wait_s: float, error: str | None = None) -> None:
        """Give a claimed round back in its state, not to be taken for `wait_s` seconds.

        With `error` it counts as a failure of the round. Raises `RoundConflict` when the claim is no longer
        valid.
        """
        table = tables.rounds.c
        failure = {} if error is None else {"failures": table.failures + 1, "error": error}
        with self._store.transaction() as connection:
            values = {"lease_owner": None, "lease_until": None, "not_before": self._now(connection) + wait_s}
            given_back = connection.execute(
                tables.rounds.update().where(_held(round_)).values(**values, **failure)
            )
        if given_back.rowcount != 1:
            raise _lost(round_)

    def note(self, round_: Round[RecordT], record: RecordT) -> Round[RecordT]:
        """Store what a step of several looks has learned so far: the round stays in its state and in its
        worker's hands. Raises `RoundConflict` when the claim is no longer valid."""
        with self._store.transaction() as connection:
            values = {"record": record.model_dump_json()}
            noted = connection.execute(tables.rounds.update().where(_held(round_)).values(**values))
        if noted.rowcount != 1:
            raise _lost(round_)
        return replace(round_, record=record)

    def bind_run(self, round_: Round[RecordT], run_id: str) -> str:
        """Tie the round to its one MLflow run; returns the run it is tied to (the first that was given).

        Raises `RoundConflict` when the claim is no longer valid.
        """
        table = tables.rounds.c
        with self._store.transaction() as connection:
            connection.execute(
                tables.rounds.update().where(_held(round_), table.run_id.is_(None)).values(run_id=run_id)
            )
            bound = connection.execute(sa.select(table.run_id).where(_held(round_))).scalar_one_or_none()
        if bound is None:
            raise _lost(round_)
        return str(bound)

    def advance(
        self,
        round_: Round[RecordT],
        state: str,
        record: RecordT,
        events: Sequence[Event],
        ledger: Sequence[Row] = (),
    ) -> Round[RecordT]:
        """Move a round from its state to `state` with its new record, publish `events`, and give it back.

        Doing it twice has no second effect. Raises `RoundConflict` when the claim is no longer valid, or the
        round is in some other state by now.
        """
        free = {"lease_owner": None, "lease_until": None, "not_before": None}
        with self._store.transaction() as connection:
            moved = connection.execute(
                tables.rounds.update()
                .where(_held(round_))
                .values(state=state, record=record.model_dump_json(), failures=0, error=None, **free)
            )
            if moved.rowcount == 1:
                self._store.insert_new(tables.ledger, ledger, connection)
                self._store.publish([encode(event) for event in events], connection)
        current = self.get(round_.round_id)
        if current is None or (current.state, current.fence) != (state, round_.fence):
            raise _lost(round_)
        return current

    def route(self, student: str) -> tuple[int, int | None] | None:
        """(served version, version before it), or None for a student that was never set up."""
        table = tables.routes.c
        with self._store.transaction(read_only=True) as connection:
            row = connection.execute(
                sa.select(table.version, table.previous).where(table.student == student)
            ).one_or_none()
        return None if row is None else (row[0], row[1])

    def students(self) -> tuple[str, ...]:
        """Every student that was set up or has a round or answers here, by name."""
        names = [sa.select(table.c.student) for table in (tables.routes, tables.rounds, tables.watermarks)]
        with self._store.transaction(read_only=True) as connection:
            return tuple(sorted(connection.execute(sa.union(*names)).scalars()))

    def set_route(
        self,
        student: str,
        version: int,
        holder: Round[RecordT] | None,
        event: Event,
        before: int | Served | None = SERVED,
    ) -> None:
        """Serve `version` from now on; the version `before` it is the one served until now, unless one is
        named (None: there is none). A repetition changes nothing.

        `holder` is the claimed round that brings the version, None when a person switches. Raises
        `RoundConflict` when its claim is no longer valid.
        """
        table = tables.routes
        with self._store.transaction() as connection:
            if holder is not None:
                held = sa.select(tables.rounds.c.round_id).where(_held(holder)).with_for_update()
                if connection.execute(held).one_or_none() is None:
                    raise _lost(holder)
            row = connection.execute(
                sa.select(table.c.version).where(table.c.student == student)
            ).one_or_none()
            if row is not None and row[0] == version:
                return
            values = {
                "version": version,
                "previous": (row[0] if row else None) if before == SERVED else before,
                "round_id": None if holder is None else holder.round_id,
            }
            if row is None:
                connection.execute(table.insert().values(student=student, **values))
            else:
                connection.execute(table.update().where(table.c.student == student).values(**values))
            self._store.publish([encode(event)], connection)

    def _now(self, connection: sa.Connection) -> float:
        return self._store.time(connection) if self._clock is None else self._clock.now().timestamp()

    def _round(self, row: sa.Row[tuple[object, ...]]) -> Round[RecordT]:
        return Round(
            row.round_id,
            row.student,
            row.number,
            row.state,
            row.run_id,
            self._record(row),
            row.lease_owner,
            row.fence,
            row.failures,
            row.error,
        )

    def _readable(self, row: sa.Row[tuple[object, ...]]) -> Round[RecordT] | None:
        try:
            return self._round(row)
        except UnreadableRecord as exc:
            if row.round_id not in self._named:
                self._named.add(row.round_id)
                logger.error("round %s is set aside: %s", row.round_id, exc)
        return None

    def _record(self, row: sa.Row[tuple[object, ...]]) -> RecordT:
        try:
            return self._parse(row.record)
        except (ValueError, LookupError, TypeError) as exc:
            reason = " ".join(str(exc).split())[:300]
            raise UnreadableRecord(
                f"the record of round {row.round_id!r} cannot be read ({type(exc).__name__}: {reason}); use "
                "the version of skillloop that wrote it, mend its row of the table `rounds`, or end it with "
                f"`skillloop rounds discard {row.round_id}`"
            ) from exc


def _over(moment: sa.ColumnElement[float], now: float) -> sa.ColumnElement[bool]:
    return sa.or_(moment.is_(None), moment < now, moment > now + LONGEST_WAIT_S)


def _held(round_: Round[Any]) -> sa.ColumnElement[bool]:
    """The round is still in the state, and in the hands, in which this value of it was read."""
    table = tables.rounds.c
    return sa.and_(
        table.round_id == round_.round_id,
        table.state == round_.state,
        table.lease_owner.is_not_distinct_from(round_.owner),
        table.fence == round_.fence,
    )


def _lost(round_: Round[Any]) -> RoundConflict:
    return RoundConflict(
        f"round {round_.round_id} is no longer {round_.state} and held by {round_.owner} with fence"
        f" {round_.fence}; another worker has it"
    )
