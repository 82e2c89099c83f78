"""The state store: the only place where the loop's state changes (contract 2). SQLAlchemy Core on SQLite or
PostgreSQL."""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, ProgrammingError

from agent.items import JsonObject
from agent.profile import BucketKey, Counts, ProfileTable
from streams.clock import Clock
from streams.codec import encode
from streams.errors import StreamsError
from streams.events import Event, EventKey
from streams.log import Outgoing, Partition, dump_headers
from streams.state import seen, tables
from streams.state.dialects import BUCKET_COLUMNS, STATEMENTS, check_64_bits, sqlite_begin, sqlite_pragmas
from streams.state.reading import Reads
from streams.state.seen import SeenEvent
from streams.state.steady import steady_time


class StoreError(StreamsError):
    """The state store failed; the message names the database (without its password) and what to do."""


class StoreUnavailable(StoreError):
    """The database cannot be reached, is locked, or its disk is full: retry later. Nothing was written."""


class NothingStored(StoreError):
    """There is no state store at the address."""


class StaleOffsets(StoreError):
    """Another consumer has moved a partition's offset, so this one has lost it: its batch was not written."""


class DuplicateEvents(StoreError):
    """An event of the batch became known while it was being processed, or so old that nobody can tell: filter
    again and retry. Nothing was written."""


class StoreRefused(StoreError):
    """The database can never take these values (a number too large, text with NUL). Nothing was written."""


_SETUP_LOCK = 0x5C111


@dataclass(frozen=True)
class Batch:
    """Everything one batch changes, written in one transaction.

    `expected` and `offsets` are the next offsets before and after; `buckets` maps (student, version, skill,
    bucket) to increments; `watermarks` maps (student, version) to (outputs counted, latest event time in
    epoch seconds)."""

    group: str
    expected: Mapping[Partition, int]
    offsets: Mapping[Partition, int]
    events: Sequence[SeenEvent] = ()
    buckets: Mapping[BucketKey, Counts] = field(default_factory=dict)
    watermarks: Mapping[tuple[str, int], tuple[int, float]] = field(default_factory=dict)
    outbox: Sequence[Outgoing] = ()
    ledger: Sequence[Mapping[str, object]] = ()
    held_out: Sequence[Mapping[str, object]] = ()


class StateStore:
    """Opens (and on first use creates) the tables in the database at `url`.

    `clock` replaces the database's time, in tests. Raises `StoreUnavailable` when the database cannot be
    reached; without `create`, `NothingStored` where nothing is there.
    """

    def __init__(self, url: str, clock: Clock | None = None, create: bool = True) -> None:
        self.url = _address(url)
        self.clock, self.reads = clock, Reads()
        is_file = self.url.get_backend_name() == "sqlite"
        if is_file and self.url.database:
            if not create and not Path(self.url.database).is_file():
                raise NothingStored(f"no state store {self.url.database}")
            _make_folder(Path(self.url.database))
        timeout = {"timeout": 30} if is_file and "timeout" not in self.url.query else {}
        self.engine = sa.create_engine(self.url, connect_args=timeout, pool_pre_ping=True)
        if is_file:
            sa.event.listen(self.engine, "connect", sqlite_pragmas)
            sa.event.listen(self.engine, "begin", sqlite_begin)
        self._statements = STATEMENTS[self.engine.dialect.name]
        try:
            self._set_up(create)
        except BaseException:
            self.close()
            raise

    def _set_up(self, create: bool) -> None:
        with self.transaction() as connection:
            # Several processes may start on a new database at once
            if self.engine.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_SETUP_LOCK)))
            if not create and not sa.inspect(connection).has_table(tables.offsets.name):
                raise NothingStored(f"no tables in the state store {self._shown()}")
            sums_are_new = not sa.inspect(connection).has_table("ledger_sums")
            old_ids = seen.set_aside_earlier(connection)
            tables.metadata.create_all(connection)
            tables.add_columns(connection)
            self.insert_new(tables.retention, [{"row_id": 1}], connection)
            if old_ids:
                seen.convert_earlier(connection)
            if self.engine.dialect.name == "sqlite":
                self._steady = steady_time(connection)
            self._unknown_sources = seen.has_unknown_sources(connection)
            for index in tables.buckets.indexes:  # of a database of before there was the column
                index.create(connection, checkfirst=True)
            for statement in tables.ledger_triggers(self.engine.dialect.name) if sums_are_new else ():
                connection.exec_driver_sql(statement)

    @contextmanager
    def transaction(self, read_only: bool = False) -> Iterator[sa.Connection]:
        """One transaction. The database's failures come out as `StoreUnavailable` where a later try can
        succeed and as `StoreRefused` where it cannot, all others as they are."""
        if read_only and self.reads.connection is not None:
            yield self.reads.connection
            return
        try:
            with (
                self.engine.connect().execution_options(read_only=read_only) as connection,
                connection.begin(),
            ):
                yield connection
        except (IntegrityError, ProgrammingError):
            raise
        except (DataError, OverflowError, UnicodeError) as exc:  # the latter are the drivers'
            reason = exc.orig if isinstance(exc, DataError) else exc
            raise StoreRefused(
                f"state store {self._shown()} refused the values: {reason}; nothing was written"
            ) from exc
        except DBAPIError as exc:
            raise StoreUnavailable(
                f"state store {self._shown()}: {exc.orig}; nothing was written, check the setting store.url"
            ) from exc

    def _shown(self) -> str:
        return self.url.render_as_string(hide_password=True)

    def time(self, connection: sa.Connection) -> float:
        """The database's time in epoch seconds: one clock for all processes that share it, for leases and
        claims."""
        if self.clock is not None:
            return self.clock.monotonic()
        if self.engine.dialect.name == "sqlite":
            return self._steady()
        return float(connection.execute(sa.text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one())

    def insert_new(
        self, table: sa.Table, rows: Sequence[Mapping[str, object]], connection: sa.Connection
    ) -> None:
        """Insert rows, leaving those whose primary key exists as they are."""
        if rows:
            connection.execute(self._insert(table).on_conflict_do_nothing(), list(rows))

    def _insert(self, table: sa.Table) -> Any:
        return import_module(self.engine.dialect.__module__.rpartition(".")[0]).insert(table)  # is loaded

    def commit(self, batch: Batch) -> None:
        """Write a batch, all of it or nothing. The order inside the one transaction:

        1. offsets, by compare-and-set: `StaleOffsets` if any differs from `expected` (the partition was
           lost);
        2. event ids: `DuplicateEvents` if one is known already, or older than what is known;
        3. watermarks, which hold a version's row: its batches commit one after the other;
        4. profile buckets: integer increments, numbered by the version's batch (`written_since`);
        5. ledger, and questions reserved for the held-out set;
        6. outbox rows: the only way out for events and dead letters.
        """
        try:
            with self.transaction() as connection:
                self._move_offsets(batch, connection)
                self._remember(batch.events, connection)
                self._add_watermarks(batch, connection)
                self._add_buckets(batch, connection)
                self.insert_new(tables.ledger, batch.ledger, connection)
                self.insert_new(tables.held_out_items, batch.held_out, connection)
                self.publish(batch.outbox, connection)
        except IntegrityError as exc:
            raise StoreRefused(
                f"state store {self._shown()} refused the batch: {exc.orig}; nothing was written"
            ) from exc

    def _remember(self, events: Sequence[SeenEvent], connection: sa.Connection) -> None:
        if not events:
            return
        from_day = seen.known_from(connection)
        if from_day is not None and any(event.day is not None and event.day < from_day for event in events):
            raise DuplicateEvents("an event of this batch is older than what the store remembers")
        if self._unknown_sources and seen.known_without_source([e[:2] for e in events], connection):
            raise DuplicateEvents("an event of this batch was known to an earlier version")
        try:
            seen.remember(events, connection)
        except IntegrityError as exc:
            raise DuplicateEvents(f"an event of this batch of {len(events)} is known by now") from exc

    def _move_offsets(self, batch: Batch, connection: sa.Connection) -> None:
        table = tables.offsets
        for partition, offset in sorted(batch.offsets.items()):
            expected = batch.expected.get(partition, 0)
            key = {"consumer_group": batch.group, "topic": partition.topic, "number": partition.number}
            if expected == 0:
                self.insert_new(table, [{**key, "next_offset": 0}], connection)
            where = [table.c[name] == value for name, value in key.items()]
            moved = connection.execute(
                table.update().where(*where, table.c.next_offset == expected).values(next_offset=offset)
            )
            if moved.rowcount != 1:
                raise StaleOffsets(
                    f"{batch.group}: {partition.topic}[{partition.number}] is no longer at {expected}; "
                    "another consumer has it"
                )

    def _add_buckets(self, batch: Batch, connection: sa.Connection) -> None:
        if not batch.buckets:
            return
        numbers = {where: self._last_batch(where, connection) + 1 for where in {k[:2] for k in batch.buckets}}
        rows = [(*key, *counts, numbers[key[:2]]) for key, counts in sorted(batch.buckets.items())]
        if self.engine.dialect.name == "postgresql":
            values: JsonObject = {
                name: list(column)
                for name, column in zip(BUCKET_COLUMNS, zip(*rows, strict=True), strict=True)
            }
        else:
            values = {"rows": json.dumps(rows, ensure_ascii=False)}
            check_64_bits(rows)
        connection.execute(self._statements.buckets, values)

    def _last_batch(self, where: tuple[str, int], connection: sa.Connection) -> int:
        column = tables.buckets.c
        of_version = (column.student == where[0], column.version == where[1])
        newest = sa.select(column.written).where(*of_version).order_by(column.written.desc()).limit(1)
        return connection.execute(newest).scalar_one_or_none() or 0

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
                index_elements=["student", "version"],
                set_={"outputs": table.outputs + new.outputs, "latest": later},
            ),
            rows,
        )

    def publish(self, records: Sequence[Outgoing], connection: sa.Connection) -> None:
        """Put records into the outbox inside a transaction of the caller's."""
        rows = [
            {
                "topic": r.topic,
                "key": r.key,
                "value": r.value,
                "headers": dump_headers(r.headers),
                "record_id": str(uuid.uuid4()),
            }
            for r in records
        ]
        if rows:
            connection.execute(tables.outbox.insert(), rows)

    def offsets(self, group: str) -> dict[Partition, int]:
        """The group's stored next offsets; partitions never written are absent (0)."""
        table = tables.offsets.c
        query = sa.select(table.topic, table.number, table.next_offset).where(table.consumer_group == group)
        with self.transaction(read_only=True) as connection:
            return {Partition(topic, number): offset for topic, number, offset in connection.execute(query)}

    def known(self, keys: Collection[EventKey]) -> set[EventKey]:
        """Which of these events are in the store."""
        if not keys:
            return set()
        with self.transaction(read_only=True) as connection:
            counted = seen.known(keys, connection)
            if self._unknown_sources:
                counted |= seen.known_without_source(keys, connection)
        return counted

    def known_from(self) -> int | None:
        """The day (an ordinal) from which on the store knows which events it has counted; None: all days."""
        with self.transaction(read_only=True) as connection:
            return connection.execute(sa.select(tables.retention.c.from_day)).scalar_one_or_none()

    def publish_once(self, event: Event) -> bool:
        """Put an event into the outbox and remember it indefinitely; False when it is known."""
        if self.known([event.identity]):
            return False
        try:
            with self.transaction() as connection:
                seen.remember([SeenEvent(*event.identity, None)], connection)
                self.publish([encode(event)], connection)
        except IntegrityError:
            return False
        return True

    def buckets(
        self, student: str | None = None, version: int | None = None, since_bucket: int | None = None
    ) -> ProfileTable:
        """The profile's table: of one student or of all, of one version or of all, from a bucket on."""
        column = tables.buckets.c
        query = sa.select(
            column.student, column.version, column.skill, column.bucket, column.needed, column.missing
        )
        if student is not None:
            query = query.where(column.student == student)
        if version is not None:
            query = query.where(column.version == version)
        if since_bucket is not None:
            query = query.where(column.bucket >= since_bucket)
        with self.transaction(read_only=True) as connection:
            return {BucketKey(*row[:4]): Counts(*row[4:6]) for row in connection.execute(query)}

    def written_since(
        self, student: str, version: int, batch: int, since_bucket: int | None = None
    ) -> tuple[int, ProfileTable]:
        """The rows of a version that were written after its batch number `batch` (-1: all), as they are now,
        from a bucket on, and the number of the newest batch read: what to ask with next time."""
        column = tables.buckets.c
        query = sa.select(column.skill, column.bucket, column.needed, column.missing, column.written).where(
            column.student == student, column.version == version, column.written > batch
        )
        if since_bucket is not None:
            query = query.where(column.bucket >= since_bucket)
        rows: ProfileTable = {}
        with self.transaction(read_only=True) as connection:
            newest = max(batch, self._last_batch((student, version), connection))
            for skill, bucket, needed, missing, written in connection.execute(query):
                rows[BucketKey(student, version, skill, bucket)] = Counts(needed, missing)
                newest = max(newest, written)
        return newest, rows

    def answers(self, student: str) -> int:
        """Answers watched so far, of all versions: the policy's clock."""
        column = tables.watermarks.c
        query = sa.select(sa.func.coalesce(sa.func.sum(column.outputs), 0)).where(column.student == student)
        with self.transaction(read_only=True) as connection:
            return int(connection.execute(query).scalar_one())

    def watermarks(self, student: str) -> dict[int, tuple[int, float]]:
        """(outputs counted, latest event time in epoch seconds) of every version that had an output."""
        table = tables.watermarks.c
        query = sa.select(table.version, table.outputs, table.latest).where(table.student == student)
        with self.transaction(read_only=True) as connection:
            return {version: (outputs, latest) for version, outputs, latest in connection.execute(query)}

    def pending(self, limit: int) -> list[tuple[int, Outgoing]]:
        """The oldest unsent outbox rows, claimed or not."""
        query = sa.select(tables.outbox).order_by(tables.outbox.c.row_id).limit(limit)
        with self.transaction(read_only=True) as connection:
            return [(row.row_id, tables.outgoing(row)) for row in connection.execute(query)]

    def close(self) -> None:
        """Release connections."""
        self.engine.dispose()


def _make_folder(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise StoreUnavailable(f"cannot create {path.parent}: {exc}; choose another store.url") from exc


def _address(url: str) -> sa.URL:
    """The parsed `url`. The parser's own words are left out: they can hold a piece of the password."""
    try:
        address = sa.make_url(url)
        known = address.get_backend_name() in STATEMENTS and address.get_dialect() is not None
    except (sa.exc.ArgumentError, ValueError):
        known = False
    if not known:
        raise StoreError(
            "the setting store.url is no address of a database that is known here: sqlite:///FILE or "
            "postgresql+psycopg://USER:PASSWORD@HOST/NAME, special characters of a password as in %40"
        )
    return address
