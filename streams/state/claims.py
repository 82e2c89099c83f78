"""Claims on outbox rows: which relay may send which rows, and for how long (docs/decisions/0011).

Their time is the database's, so relays on machines whose clocks differ agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import sqlalchemy as sa

from streams.log import Outgoing, dump_headers
from streams.state import tables
from streams.state.store import StateStore

LONGEST_CLAIM_S = 600.0
"""A claim that ends later than this from now was made before the database's clock was set back."""


@dataclass(frozen=True)
class Claim:
    """Who takes outbox rows, and for how long."""

    owner: str
    lease_s: float


class OutboxRow(NamedTuple):
    """A claimed outbox row; `since` holds the topic's end offsets before the first attempt to send it, as
    JSON."""

    row_id: int
    record_id: str
    record: Outgoing
    since: str


class OutboxClaims:
    """The outbox as a relay sees it."""

    def __init__(self, store: StateStore) -> None:
        self._store = store

    def unclaimed_topics(self, limit: int) -> list[str]:
        """The topics of the `limit` oldest outbox rows that no relay has tried to send."""
        query = (
            sa.select(tables.outbox.c.topic)
            .where(tables.outbox.c.claimed_by.is_(None))
            .order_by(tables.outbox.c.row_id)
            .limit(limit)
        )
        with self._store.transaction(read_only=True) as connection:
            return sorted(set(connection.execute(query).scalars()))

    def claim(self, claim: Claim, since: Mapping[str, str], limit: int) -> list[OutboxRow]:
        """Take the oldest rows that nobody has tried to send, of the topics in `since` (topic -> its end
        offsets now, as JSON)."""
        column = tables.outbox.c
        query = sa.select(tables.outbox).where(column.claimed_by.is_(None), column.topic.in_(since))
        with self._store.transaction() as connection:
            rows = connection.execute(
                query.order_by(column.row_id).limit(limit).with_for_update(skip_locked=True)
            ).all()
            for topic in {row.topic for row in rows}:
                row_ids = [row.row_id for row in rows if row.topic == topic]
                update = tables.outbox.update().where(column.row_id.in_(row_ids))
                until = self._store.time(connection) + claim.lease_s
                connection.execute(
                    update.values(claimed_by=claim.owner, claimed_until=until, since=since[topic])
                )
        return [OutboxRow(row.row_id, row.record_id, tables.outgoing(row), since[row.topic]) for row in rows]

    def reclaim(self, claim: Claim, limit: int) -> list[OutboxRow]:
        """Take the oldest rows whose claim has run out: their sender died or failed, and they may have been
        sent."""
        column = tables.outbox.c
        with self._store.transaction() as connection:
            now = self._store.time(connection)
            query = sa.select(tables.outbox).where(_over(now))
            rows = connection.execute(
                query.order_by(column.row_id).limit(limit).with_for_update(skip_locked=True)
            ).all()
            update = tables.outbox.update().where(column.row_id.in_([row.row_id for row in rows]))
            if rows:
                connection.execute(update.values(claimed_by=claim.owner, claimed_until=now + claim.lease_s))
        return [OutboxRow(row.row_id, row.record_id, tables.outgoing(row), row.since) for row in rows]

    def renew(self, row_ids: Sequence[int], claim: Claim) -> set[int]:
        """Hold claimed rows longer; returns those that are still there and still the owner's."""
        column = tables.outbox.c
        mine = sa.and_(column.row_id.in_(row_ids), column.claimed_by == claim.owner)
        with self._store.transaction() as connection:
            until = self._store.time(connection) + claim.lease_s
            connection.execute(tables.outbox.update().where(mine).values(claimed_until=until))
            return set(connection.execute(sa.select(column.row_id).where(mine)).scalars())

    def has_expired_claims(self) -> bool:
        """Whether `reclaim` would find something: a cheap question, asked without a write lock."""
        with self._store.transaction(read_only=True) as connection:
            query = sa.select(tables.outbox.c.row_id).where(_over(self._store.time(connection))).limit(1)
            return connection.execute(query).first() is not None

    def sent(self, row_ids: Sequence[int]) -> None:
        """Delete outbox rows that the log has acknowledged."""
        if row_ids:
            with self._store.transaction() as connection:
                connection.execute(tables.outbox.delete().where(tables.outbox.c.row_id.in_(row_ids)))

    def refuse(self, row: OutboxRow, error: str) -> None:
        """Move an outbox row aside that the log can never take; doing it twice has no second effect."""
        record = row.record
        aside = {
            "record_id": row.record_id,
            "topic": record.topic,
            "key": record.key,
            "value": record.value,
            "headers": dump_headers(record.headers),
            "error": error[:2000],
        }
        with self._store.transaction() as connection:
            self._store.insert_new(tables.refused, [aside], connection)
            connection.execute(tables.outbox.delete().where(tables.outbox.c.row_id == row.row_id))


def _over(now: float) -> sa.ColumnElement[bool]:
    until = tables.outbox.c.claimed_until
    return sa.or_(until < now, until > now + LONGEST_CLAIM_S)
