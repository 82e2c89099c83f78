"""Forgetting what is older than a window of event time: the ids of events, and buckets of versions that are
no longer served (docs/decisions/0031).

The boundary moves first and for good: from then on an older event is refused, so that it cannot count twice
once its id is gone. Deleting follows in pieces, and may be interrupted.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

import sqlalchemy as sa

from agent.profile import ProfileTable
from streams.state import tables
from streams.state.store import StateStore

PIECE = 50_000
_EPOCH = date(1970, 1, 1).toordinal()
_DAY_S = 86_400


@dataclass(frozen=True)
class Compaction:
    """What was removed, or would be: `events` ids and `buckets` rows from before `from_day` (an ordinal)."""

    from_day: int
    events: int
    buckets: int


def compact(
    store: StateStore, from_day: int, bucket_s: int, dry_run: bool = False, piece: int = PIECE
) -> Compaction:
    """Forget what lies before `from_day`, or before the boundary of an earlier compaction if that is later.

    Buckets of the served versions and of the versions before them stay, and so do those of students without a
    route. Raises `StoreUnavailable`: run it again.
    """
    with store.transaction(read_only=True) as connection:
        before = connection.execute(sa.select(tables.retention.c.from_day)).scalar_one()
    day = max(from_day, before or from_day)
    if not dry_run:
        with store.transaction() as connection:
            connection.execute(tables.retention.update().values(from_day=day))
    old_ids, old_buckets = tables.seen_events.c.day < day, _old_buckets(day, bucket_s)
    with store.transaction(read_only=True) as connection:
        events = _count(tables.seen_events, old_ids, connection)
        buckets = _count(tables.buckets, old_buckets, connection)
    if not dry_run:
        _delete_ids(store, old_ids, piece)
        with store.transaction() as connection:
            connection.execute(tables.buckets.delete().where(old_buckets))
    return Compaction(day, events, buckets)


def first_bucket(from_day: int, bucket_s: int) -> int:
    """The first bucket that lies wholly on or after a day."""
    return -(-(from_day - _EPOCH) * _DAY_S // bucket_s)


def without_removed(table: ProfileTable, live: ProfileTable, from_day: int, bucket_s: int) -> ProfileTable:
    """A table rebuilt from the log, without the old buckets of versions of which the store has none left."""
    border = _border(from_day, bucket_s)
    left = {key[:2] for key in live if key.bucket < border}
    return {key: counts for key, counts in table.items() if key.bucket >= border or key[:2] in left}


def _border(day: int, bucket_s: int) -> int:
    """The first bucket that does not end before a day."""
    return (day - _EPOCH) * _DAY_S // bucket_s


def _old_buckets(day: int, bucket_s: int) -> sa.ColumnElement[bool]:
    """Buckets that end before the day, of versions that their student's route does not name."""
    bucket, route = tables.buckets.c, tables.routes.c
    unnamed = sa.and_(
        route.student == bucket.student,
        route.version != bucket.version,
        route.previous.is_distinct_from(bucket.version),
    )
    retired = sa.exists().where(unnamed)
    return sa.and_(bucket.bucket < _border(day, bucket_s), retired)


def _count(table: sa.Table, condition: sa.ColumnElement[bool], connection: sa.Connection) -> int:
    return int(
        connection.execute(sa.select(sa.func.count()).select_from(table).where(condition)).scalar_one()
    )


def _delete_ids(store: StateStore, old: sa.ColumnElement[bool], size: int) -> None:
    """In pieces of `size` rows along the primary key, so that workers wait for none of them long."""
    table = tables.seen_events
    key = sa.tuple_(table.c.source, table.c.event_id)
    after: tuple[str, str] | None = None
    while True:
        rest = sa.true() if after is None else key > sa.tuple_(*map(sa.literal, after))
        piece = sa.select(table.c.source, table.c.event_id).where(rest).order_by(*key.clauses)
        with store.transaction() as connection:
            last = connection.execute(piece.offset(size - 1).limit(1)).one_or_none()
            upto = sa.true() if last is None else key <= sa.tuple_(*map(sa.literal, last))
            connection.execute(table.delete().where(rest, upto, old))
        if last is None:
            return
        after = (last.source, last.event_id)
