"""The state store: the only place where the loop's state changes (contract 2). SQLAlchemy Core on SQLite or PostgreSQL."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError

from streams import tables
from streams.log import Headers, Outgoing, Partition


class StoreError(Exception):
    """The state store failed; the message names the database (without its password) and what to do."""


class StoreUnavailable(StoreError):
    """The database cannot be reached, is locked, or its disk is full: retry with back-off; nothing was written."""


class StaleOffsets(StoreError):
    """Another consumer has moved a partition's offset, so this one has lost it: its batch was not written."""


class DuplicateEvents(StoreError):
    """An event of the batch became known while it was being processed: filter again and retry. Nothing was written."""


BucketKey = tuple[str, int, str, int]


@dataclass(frozen=True)
class Batch:
    """Everything one batch changes, written in one transaction.

    `expected` and `offsets` are the next offsets before and after; `buckets` maps (student, version, skill, bucket) to
    (needed, missing) increments; `watermarks` maps (student, version) to (outputs counted, latest event time in epoch seconds).
    """

    group: str
    expected: Mapping[Partition, int]
    offsets: Mapping[Partition, int]
    event_ids: Sequence[str] = ()
    buckets: Mapping[BucketKey, tuple[int, int]] = field(default_factory=dict)
    watermarks: Mapping[tuple[str, int], tuple[int, float]] = field(default_factory=dict)
    outbox: Sequence[Outgoing] = ()
    ledger: Sequence[Mapping[str, Any]] = ()


class StateStore:
    """Opens (and on first use creates) the tables in the database at `url`.

    Raises `StoreUnavailable` when the database cannot be reached.
    """

    def __init__(self, url: str) -> None:
        self.url = sa.make_url(url)
        if self.url.get_backend_name() == "sqlite" and self.url.database:
            _make_folder(Path(self.url.database))
        timeout = {"timeout": 30} if self.url.get_backend_name() == "sqlite" else {}
        self.engine = sa.create_engine(self.url, connect_args=timeout, pool_pre_ping=True)
        if self.engine.dialect.name == "sqlite":
            sa.event.listen(self.engine, "connect", _sqlite_pragmas)
            sa.event.listen(self.engine, "begin", _sqlite_begin)
        with self.transaction() as connection:
            tables.metadata.create_all(connection)

    @contextmanager
    def transaction(self, read_only: bool = False) -> Iterator[sa.Connection]:
        """One transaction. Database failures come out as `StoreUnavailable`, all others as they are."""
        try:
            with self.engine.connect().execution_options(read_only=read_only) as connection, connection.begin():
                yield connection
        except IntegrityError:
            raise
        except (OperationalError, DBAPIError) as exc:
            shown = self.url.render_as_string(hide_password=True)
            raise StoreUnavailable(f"state store {shown}: {exc.orig}; nothing was written, check the setting store.url") from exc

    def insert_new(self, table: sa.Table, rows: Sequence[Mapping[str, Any]], connection: sa.Connection) -> None:
        """Insert rows, leaving those whose primary key exists as they are."""
        if rows:
            connection.execute(self._insert(table).on_conflict_do_nothing(), list(rows))

    def _insert(self, table: sa.Table) -> Any:
        return (postgresql if self.engine.dialect.name == "postgresql" else sqlite).insert(table)

    def commit(self, batch: Batch) -> None:
        """Write a batch, all of it or nothing. The order inside the one transaction:

        1. offsets, by compare-and-set: `StaleOffsets` if any differs from `expected` (the partition was lost);
        2. event ids: `DuplicateEvents` if one is known already;
        3. profile buckets: integer increments;
        4. watermarks and ledger;
        5. outbox rows: the only way out for events and dead letters.
        """
        try:
            with self.transaction() as connection:
                self._move_offsets(batch, connection)
                if batch.event_ids:
                    connection.execute(tables.seen_events.insert(), [{"event_id": event_id} for event_id in batch.event_ids])
                self._add_buckets(batch, connection)
                self._add_watermarks(batch, connection)
                self.insert_new(tables.ledger, batch.ledger, connection)
                self.publish(batch.outbox, connection)
        except IntegrityError as exc:
            raise DuplicateEvents(f"an event of this batch of {len(batch.event_ids)} is known by now") from exc

    def _move_offsets(self, batch: Batch, connection: sa.Connection) -> None:
        table = tables.offsets
        for partition, offset in sorted(batch.offsets.items()):
            expected = batch.expected.get(partition, 0)
            key = {"consumer_group": batch.group, "topic": partition.topic, "number": partition.number}
            if expected == 0:
                self.insert_new(table, [{**key, "next_offset": 0}], connection)
            where = [table.c[name] == value for name, value in key.items()]
            moved = connection.execute(table.update().where(*where, table.c.next_offset == expected).values(next_offset=offset))
            if moved.rowcount != 1:
                raise StaleOffsets(
                    f"{batch.group}: {partition.topic}[{partition.number}] is no longer at {expected}; another consumer has it"
                )

    def _add_buckets(self, batch: Batch, connection: sa.Connection) -> None:
        if not batch.buckets:
            return
        names = ("student", "version", "skill", "bucket", "needed", "missing")
        rows = [dict(zip(names, (*key, *counts), strict=True)) for key, counts in sorted(batch.buckets.items())]
        statement = self._insert(tables.buckets)
        table, new = tables.buckets.c, statement.excluded
        statement = statement.on_conflict_do_update(
            index_elements=names[:4], set_={"needed": table.needed + new.needed, "missing": table.missing + new.missing}
        )
        connection.execute(statement, rows)

    def _add_watermarks(self, batch: Batch, connection: sa.Connection) -> None:
        if not batch.watermarks:
            return
        rows = [
            {"student": student, "version": version, "outputs": outputs, "latest": latest}
            for (student, version), (outputs, latest) in sorted(batch.watermarks.items())
        ]
        statement = self._insert(tables.watermarks)
        table, new = tables.watermarks.c, statement.excluded
        later = sa.case((new.latest > table.latest, new.latest), else_=table.latest)
        connection.execute(
            statement.on_conflict_do_update(
                index_elements=["student", "version"], set_={"outputs": table.outputs + new.outputs, "latest": later}
            ),
            rows,
        )

    def publish(self, records: Sequence[Outgoing], connection: sa.Connection) -> None:
        """Put records into the outbox inside a transaction of the caller's."""
        rows = [{"topic": r.topic, "key": r.key, "value": r.value, "headers": _dump_headers(r.headers)} for r in records]
        if rows:
            connection.execute(tables.outbox.insert(), rows)

    def offsets(self, group: str) -> dict[Partition, int]:
        """The group's stored next offsets; partitions never written are absent (0)."""
        table = tables.offsets.c
        query = sa.select(table.topic, table.number, table.next_offset).where(table.consumer_group == group)
        with self.transaction(read_only=True) as connection:
            return {Partition(topic, number): offset for topic, number, offset in connection.execute(query)}

    def known(self, event_ids: Sequence[str]) -> set[str]:
        """Which of these event ids are in the store."""
        column = tables.seen_events.c.event_id
        found: set[str] = set()
        with self.transaction(read_only=True) as connection:
            for start in range(0, len(event_ids), 500):
                query = sa.select(column).where(column.in_(event_ids[start : start + 500]))
                found.update(connection.execute(query).scalars())
        return found

    def buckets(self, student: str | None = None) -> dict[BucketKey, tuple[int, int]]:
        """The profile's table, of one student or of all."""
        query = sa.select(tables.buckets)
        if student is not None:
            query = query.where(tables.buckets.c.student == student)
        with self.transaction(read_only=True) as connection:
            return {(row[0], row[1], row[2], row[3]): (row[4], row[5]) for row in connection.execute(query)}

    def watermark(self, student: str, version: int) -> tuple[int, float] | None:
        """(outputs counted, latest event time in epoch seconds) of one version, or None before its first output."""
        table = tables.watermarks.c
        query = sa.select(table.outputs, table.latest).where(table.student == student, table.version == version)
        with self.transaction(read_only=True) as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else (row[0], row[1])

    def pending(self, limit: int) -> list[tuple[int, Outgoing]]:
        """The oldest unsent outbox rows."""
        query = sa.select(tables.outbox).order_by(tables.outbox.c.row_id).limit(limit)
        with self.transaction(read_only=True) as connection:
            return [(row[0], Outgoing(row[1], row[2], row[3], _load_headers(row[4]))) for row in connection.execute(query)]

    def sent(self, row_ids: Sequence[int]) -> None:
        """Delete outbox rows that the log has acknowledged."""
        with self.transaction() as connection:
            connection.execute(tables.outbox.delete().where(tables.outbox.c.row_id.in_(row_ids)))

    def close(self) -> None:
        """Release connections."""
        self.engine.dispose()


def _make_folder(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise StoreUnavailable(f"cannot create the folder of the state store {path}: {exc}; choose a writable one") from exc


def _sqlite_pragmas(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # transactions are opened by `_sqlite_begin`: a writer takes its lock at once
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")


def _sqlite_begin(connection: sa.Connection) -> None:
    read_only = connection.get_execution_options().get("read_only", False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


def _dump_headers(headers: Headers) -> str:
    return json.dumps([[name, value.hex()] for name, value in headers])


def _load_headers(text: str) -> Headers:
    return tuple((name, bytes.fromhex(value)) for name, value in json.loads(text))
