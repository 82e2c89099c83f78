"""Which events the store has counted, by source and id, and from which day of event time on it knows
(docs/decisions/0031).

A day is `datetime.toordinal` of an event's UTC time.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa

from streams.events import Event, EventKey
from streams.state import tables
from streams.state.dialects import STATEMENTS

UNKNOWN_SOURCE = ""
"""The source of ids of an earlier version, where several students were in the store: it matches every
student, so that nothing is counted twice."""
_BEFORE = "seen_events_before"


class SeenEvent(NamedTuple):
    """An event to be remembered; without a day indefinitely."""

    source: str
    event_id: str
    day: int | None


def seen(event: Event) -> SeenEvent:
    """What is remembered of an event."""
    return SeenEvent(event.student, event.event_id, event.occurred_at.toordinal())


def remember(events: Iterable[SeenEvent], connection: sa.Connection) -> None:
    """Insert events, in one order everywhere (two consumers cannot wait for each other). Raises
    `IntegrityError` for one that is there."""
    rows: list[dict[str, Any]]
    if connection.dialect.name == "postgresql":
        columns = [list(column) for column in zip(*sorted(events), strict=True)]
        rows = [dict(zip(("sources", "ids", "days"), columns, strict=True))] if columns else []
    else:
        groups: dict[tuple[str, int | None], list[str]] = defaultdict(list)
        for source, event_id, day in events:
            groups[source, day].append(event_id)
        rows = [{"source": s, "day": day, "ids": _json(sorted(ids))} for (s, day), ids in groups.items()]
    if rows:
        connection.execute(STATEMENTS[connection.dialect.name].insert, rows)


def known(keys: Iterable[EventKey], connection: sa.Connection) -> set[EventKey]:
    """Those of some events that are there under their own source."""
    groups: dict[str, list[str]] = defaultdict(list)
    for source, event_id in keys:
        groups[source].append(event_id)
    return {
        (source, event_id) for source, ids in groups.items() for event_id in _ids_of(source, ids, connection)
    }


def known_without_source(keys: Collection[EventKey], connection: sa.Connection) -> set[EventKey]:
    """Those of some events whose id is there without a source."""
    ids = _ids_of(UNKNOWN_SOURCE, [event_id for _, event_id in keys], connection)
    return {key for key in keys if key[1] in ids}


def has_unknown_sources(connection: sa.Connection) -> bool:
    """Whether an earlier version left ids without a source."""
    table = tables.seen_events.c
    query = sa.select(table.source).where(table.source == UNKNOWN_SOURCE).limit(1)
    return connection.execute(query).first() is not None


def known_from(connection: sa.Connection) -> int | None:
    """The day from which on the ids of events are kept; None: all are. The answer holds until the end of the
    transaction."""
    query = sa.select(tables.retention.c.from_day).with_for_update(read=True)
    return connection.execute(query).scalar_one_or_none()


def _ids_of(source: str, ids: Sequence[str], connection: sa.Connection) -> set[str]:
    statement = STATEMENTS[connection.dialect.name].known
    values: Any = list(ids) if connection.dialect.name == "postgresql" else _json(ids)
    return set(connection.execute(statement, {"source": source, "ids": values}).scalars())


def _json(ids: Sequence[str]) -> str:
    return json.dumps(ids, ensure_ascii=False)


def set_aside_earlier(connection: sa.Connection) -> bool:
    """Before the tables are made: put the ids of an earlier version, which had no source, aside. Whether
    there are any."""
    inspector = sa.inspect(connection)
    if inspector.has_table("seen_events") and not any(
        column["name"] == "source" for column in inspector.get_columns("seen_events")
    ):
        connection.exec_driver_sql(f"ALTER TABLE seen_events RENAME TO {_BEFORE}")
        return True
    return False


def convert_earlier(connection: sa.Connection) -> None:
    """After it: take them over. They belong to the student of the store, where there is only one; of their
    day nothing is known, so they are kept."""
    students = connection.execute(sa.select(tables.watermarks.c.student).distinct()).scalars().all()
    source = students[0] if len(students) == 1 else UNKNOWN_SOURCE
    connection.execute(
        sa.text(f"INSERT INTO seen_events (source, event_id) SELECT :source, event_id FROM {_BEFORE}"),
        {"source": source},
    )
    connection.exec_driver_sql(f"DROP TABLE {_BEFORE}")
