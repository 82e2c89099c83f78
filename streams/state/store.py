"""The state store: the only place where the loop's state changes (contract 2). SQLAlchemy Core on SQLite or
PostgreSQL."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, ProgrammingError

from streams.log import Headers, Outgoing, Partition
from streams.state import tables


class StoreError(Exception):
    """The state store failed; the message names the database (without its password) and what to do."""


class StoreUnavailable(StoreError):
    """The database cannot be reached, is locked, or its disk is full: retry with back-off; nothing was
    written."""


class StaleOffsets(StoreError):
    """Another consumer has moved a partition's offset, so this one has lost it: its batch was not written."""


class DuplicateEvents(StoreError):
    """An event of the batch became known while it was being processed: filter again and retry. Nothing was
    written."""


class StoreRefused(StoreError):
    """The database can never take these values (a number too large, text with NUL): do not retry. Nothing was
    written."""


BucketKey = tuple[str, int, str, int]
_SETUP_LOCK = 0x5C111


@dataclass(frozen=True)
class Batch:
    """Everything one batch changes, written in one transaction.

    `expected` and `offsets` are the next offsets before and after; `buckets` maps (student, version, skill,
    bucket) to (needed, missing) increments; `watermarks` maps (student, version) to (outputs counted, latest
    event time in epoch seconds).
    """

    group: str
    expected: Mapping[Partition, int]
    offsets: Mapping[Partition, int]
    event_ids: Sequence[str] = ()
    buckets: Mapping[BucketKey, tuple[int, int]] = field(default_factory=dict)
    watermarks: Mapping[tuple[str, int], tuple[int, float]] = field(default_factory=dict)
    outbox: Sequence[Outgoing] = ()
    ledger: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Claim:
    """Who takes outbox rows, and for how long (epoch seconds)."""

    owner: str
    now: float
    until: float


class OutboxRow(NamedTuple):
    """A claimed outbox row; `since` holds the topic's end offsets before the first attempt to send it, as
    JSON."""

    row_id: int
    record_id: str
    record: Outgoing
    since: str


class StateStore:
    """Opens (and on first use creates) the tables in the database at `url`.

    Raises `StoreUnavailable` when the database cannot be reached.
    """

    def __init__(self, url: str) -> None:
        self.url = sa.make_url(url)
        if self.url.get_backend_name() == "sqlite" and self.url.database:
            _make_folder(Path(self.url.database))
        timeout = (
            {"timeout": 30}
            if self.url.get_backend_name() == "sqlite" and "timeout" not in self.url.query
            else {}
        )
        self.engine = sa.create_engine(self.url, connect_args=timeout, pool_pre_ping=True)
        if self.engine.dialect.name == "sqlite":
            sa.event.listen(self.engine, "connect", _sqlite_pragmas)
            sa.event.listen(self.engine, "begin", _sqlite_begin)
        self._statements = _STATEMENTS[self.engine.dialect.name]
        with self.transaction() as connection:
            if (
                self.engine.dialect.name == "postgresql"
            ):  # several processes may start on a new database at once
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_SETUP_LOCK)))
            tables.metadata.create_all(connection)
            _add_columns(connection)

    @contextmanager
    def transaction(self, read_only: bool = False) -> Iterator[sa.Connection]:
        """One transaction. The database's failures come out as `StoreUnavailable` where a later try can
        succeed and as `StoreRefused` where it cannot, all others as they are.
        """
        try:
            with (
                self.engine.connect().execution_options(read_only=read_only) as connection,
                connection.begin(),
            ):
                yield connection
        except (IntegrityError, ProgrammingError):
            raise
        except DataError as exc:
            raise StoreRefused(
                f"state store {self._shown()} refused the values: {exc.orig}; nothing was written"
            ) from exc
        except (
            OverflowError,
            UnicodeError,
        ) as exc:  # raised by the drivers before the database sees the value
            raise StoreRefused(
                f"state store {self._shown()} refused the values: {exc}; nothing was written"
            ) from exc
        except DBAPIError as exc:
            raise StoreUnavailable(
                f"state store {self._shown()}: {exc.orig}; nothing was written, check the setting store.url"
            ) from exc

    def _shown(self) -> str:
        return self.url.render_as_string(hide_password=True)

    def time(self, connection: sa.Connection) -> float:
        """The database's time in epoch seconds: one clock for all processes that share it. A SQLite file's is
        its host's."""
        if self.engine.dialect.name == "sqlite":
            return time.time()
        return float(connection.execute(sa.text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one())

    def insert_new(
        self, table: sa.Table, rows: Sequence[Mapping[str, Any]], connection: sa.Connection
    ) -> None:
        """Insert rows, leaving those whose primary key exists as they are."""
        if rows:
            connection.execute(self._insert(table).on_conflict_do_nothing(), list(rows))

    def _insert(self, table: sa.Table) -> Any:
        return (postgresql if self.engine.dialect.name == "postgresql" else sqlite).insert(table)

    def commit(self, batch: Batch) -> None:
        """Write a batch, all of it or nothing. The order inside the one transaction:

        1. offsets, by compare-and-set: `StaleOffsets` if any differs from `expected` (the partition was
           lost);
        2. event ids: `DuplicateEvents` if one is known already;
        3. profile buckets: integer increments;
        4. watermarks and ledger;
        5. outbox rows: the only way out for events and dead letters.
        """
        try:
            with self.transaction() as connection:
                self._move_offsets(batch, connection)
                self._add_ids(batch.event_ids, connection)
                self._add_buckets(batch, connection)
                self._add_watermarks(batch, connection)
                self.insert_new(tables.ledger, batch.ledger, connection)
                self.publish(batch.outbox, connection)
        except IntegrityError as exc:
            raise StoreRefused(
                f"state store {self._shown()} refused the batch: {exc.orig}; nothing was written"
            ) from exc

    def _add_ids(self, event_ids: Sequence[str], connection: sa.Connection) -> None:
        """One statement with one bound value, in one order everywhere (two consumers cannot wait for each
        other)."""
        if not event_ids:
            return
        try:
            connection.execute(self._statements.insert, {"ids": self._id_list(sorted(event_ids))})
        except IntegrityError as exc:
            raise DuplicateEvents(f"an event of this batch of {len(event_ids)} is known by now") from exc

    def _id_list(self, event_ids: Sequence[str]) -> Any:
        return (
            list(event_ids)
            if self.engine.dialect.name == "postgresql"
            else json.dumps(event_ids, ensure_ascii=False)
        )

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
                    f"{batch.group}: {partition.topic}[{partition.number}] is no longer at {expected};"
                    " another consumer has it"
                )

    def _add_buckets(self, batch: Batch, connection: sa.Connection) -> None:
        if not batch.buckets:
            return
        rows = [(*key, *counts) for key, counts in sorted(batch.buckets.items())]
        if self.engine.dialect.name == "postgresql":
            values: dict[str, Any] = {
                name: list(column)
                for name, column in zip(_BUCKET_COLUMNS, zip(*rows, strict=True), strict=True)
            }
        else:
            values = {"rows": json.dumps(rows, ensure_ascii=False)}
            _check_64_bits(rows)
        connection.execute(self._statements.buckets, values)

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
                "headers": _dump_headers(r.headers),
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

    def known(self, event_ids: Sequence[str]) -> set[str]:
        """Which of these event ids are in the store."""
        if not event_ids:
            return set()
        with self.transaction(read_only=True) as connection:
            return set(
                connection.execute(self._statements.known, {"ids": self._id_list(event_ids)}).scalars()
            )

    def buckets(self, student: str | None = None) -> dict[BucketKey, tuple[int, int]]:
        """The profile's table, of one student or of all."""
        query = sa.select(tables.buckets)
        if student is not None:
            query = query.where(tables.buckets.c.student == student)
        with self.transaction(read_only=True) as connection:
            return {(row[0], row[1], row[2], row[3]): (row[4], row[5]) for row in connection.execute(query)}

    def watermark(self, student: str, version: int) -> tuple[int, float] | None:
        """(outputs counted, latest event time in epoch seconds) of one version, or None before its first
        output."""
        table = tables.watermarks.c
        query = sa.select(table.outputs, table.latest).where(
            table.student == student, table.version == version
        )
        with self.transaction(read_only=True) as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else (row[0], row[1])

    def pending(self, limit: int) -> list[tuple[int, Outgoing]]:
        """The oldest unsent outbox rows, claimed or not."""
        query = sa.select(tables.outbox).order_by(tables.outbox.c.row_id).limit(limit)
        with self.transaction(read_only=True) as connection:
            return [(row.row_id, _outgoing(row)) for row in connection.execute(query)]

    def unclaimed_topics(self, limit: int) -> list[str]:
        """The topics of the `limit` oldest outbox rows that no relay has tried to send."""
        query = (
            sa.select(tables.outbox.c.topic)
            .where(tables.outbox.c.claimed_by.is_(None))
            .order_by(tables.outbox.c.row_id)
            .limit(limit)
        )
        with self.transaction(read_only=True) as connection:
            return sorted(set(connection.execute(query).scalars()))

    def claim(self, claim: Claim, since: Mapping[str, str], limit: int) -> list[OutboxRow]:
        """Take the oldest rows that nobody has tried to send, of the topics in `since` (topic -> its end
        offsets now, as JSON)."""
        column = tables.outbox.c
        query = sa.select(tables.outbox).where(column.claimed_by.is_(None), column.topic.in_(since))
        with self.transaction() as connection:
            rows = connection.execute(
                query.order_by(column.row_id).limit(limit).with_for_update(skip_locked=True)
            ).all()
            for topic in {row.topic for row in rows}:
                row_ids = [row.row_id for row in rows if row.topic == topic]
                update = tables.outbox.update().where(column.row_id.in_(row_ids))
                connection.execute(
                    update.values(claimed_by=claim.owner, claimed_until=claim.until, since=since[topic])
                )
        return [OutboxRow(row.row_id, row.record_id, _outgoing(row), since[row.topic]) for row in rows]

    def reclaim(self, claim: Claim, limit: int) -> list[OutboxRow]:
        """Take the oldest rows whose claim has run out: their sender died or failed, and they may have been
        sent."""
        column = tables.outbox.c
        query = sa.select(tables.outbox).where(column.claimed_until < claim.now)
        with self.transaction() as connection:
            rows = connection.execute(
                query.order_by(column.row_id).limit(limit).with_for_update(skip_locked=True)
            ).all()
            update = tables.outbox.update().where(column.row_id.in_([row.row_id for row in rows]))
            if rows:
                connection.execute(update.values(claimed_by=claim.owner, claimed_until=claim.until))
        return [OutboxRow(row.row_id, row.record_id, _outgoing(row), row.since) for row in rows]

    def renew(self, row_ids: Sequence[int], claim: Claim) -> set[int]:
        """Hold claimed rows longer; returns those that are still there and still the owner's."""
        column = tables.outbox.c
        mine = sa.and_(column.row_id.in_(row_ids), column.claimed_by == claim.owner)
        with self.transaction() as connection:
            connection.execute(tables.outbox.update().where(mine).values(claimed_until=claim.until))
            return set(connection.execute(sa.select(column.row_id).where(mine)).scalars())

    def has_expired_claims(self, now: float) -> bool:
        """Whether `reclaim` would find something: a cheap question, asked without a write lock."""
        query = sa.select(tables.outbox.c.row_id).where(tables.outbox.c.claimed_until < now).limit(1)
        with self.transaction(read_only=True) as connection:
            return connection.execute(query).first() is not None

    def sent(self, row_ids: Sequence[int]) -> None:
        """Delete outbox rows that the log has acknowledged."""
        if row_ids:
            with self.transaction() as connection:
                connection.execute(tables.outbox.delete().where(tables.outbox.c.row_id.in_(row_ids)))

    def close(self) -> None:
        """Release connections."""
        self.engine.dispose()


def _make_folder(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise StoreUnavailable(
            f"cannot create the folder of the state store {path}: {exc}; choose a writable one"
        ) from exc


def _sqlite_pragmas(connection: Any, _: Any) -> None:
    connection.isolation_level = (
        None  # transactions are opened by `_sqlite_begin`: a writer takes its lock at once
    )
    # Event ids fall on random pages: larger ones (of a new database only), kept in memory and written home
    # seldom, share writes.
    connection.execute("PRAGMA page_size=16384")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA cache_size=-16384")  # KiB
    connection.execute("PRAGMA wal_autocheckpoint=4000")  # pages


def _sqlite_begin(connection: sa.Connection) -> None:
    read_only = connection.get_execution_options().get("read_only", False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


def _add_columns(connection: sa.Connection) -> None:
    """Give the tables of an older database the columns that were added since."""
    stored = sa.inspect(connection).get_multi_columns()
    for table in tables.metadata.sorted_tables:
        known = {column["name"] for column in stored[None, table.name]}
        for column in table.columns:
            if column.name not in known:
                definition = sa.schema.CreateColumn(column).compile(dialect=connection.dialect)
                connection.execute(sa.text(f"ALTER TABLE {table.name} ADD COLUMN {definition}"))


class _Statements(NamedTuple):
    """Bulk statements that SQLAlchemy cannot express for both databases: one bound value per column instead
    of one per cell."""

    insert: sa.TextClause
    known: sa.TextClause
    buckets: sa.TextClause


_BUCKET_COLUMNS = ("student", "version", "skill", "bucket", "needed", "missing")
_ADD = """ON CONFLICT (student, version, skill, bucket)
    DO UPDATE SET needed = buckets.needed + excluded.needed, missing = buckets.missing + excluded.missing"""
_INTO = f"INSERT INTO buckets ({', '.join(_BUCKET_COLUMNS)}) SELECT"
_STATEMENTS = {
    "postgresql": _Statements(
        sa.text("INSERT INTO seen_events (event_id) SELECT unnest(CAST(:ids AS text[]))"),
        sa.text("SELECT event_id FROM seen_events WHERE event_id = ANY(CAST(:ids AS text[]))"),
        sa.text(
            f"""{_INTO} * FROM unnest(CAST(:student AS text[]), CAST(:version AS integer[]), CAST(:skill AS text[]),
            CAST(:bucket AS bigint[]), CAST(:needed AS bigint[]), CAST(:missing AS bigint[])) {_ADD}"""
        ),
    ),
    "sqlite": _Statements(
        sa.text("INSERT INTO seen_events (event_id) SELECT value FROM json_each(:ids)"),
        sa.text("SELECT event_id FROM seen_events WHERE event_id IN (SELECT value FROM json_each(:ids))"),
        sa.text(
            f"""{_INTO} {", ".join(f"json_extract(value, '$[{n}]')" for n in range(6))} FROM json_each(:rows) WHERE true {_ADD}"""
        ),
    ),
}


def _check_64_bits(rows: Sequence[tuple[Any, ...]]) -> None:
    """SQLite's JSON functions turn larger integers into floats instead of refusing them."""
    for row in rows:
        if not all(-(2**63) <= number < 2**63 for number in (row[1], row[3], row[4], row[5])):
            raise OverflowError(f"a number in {row} does not fit into 64 bits")


def _outgoing(row: Any) -> Outgoing:
    return Outgoing(row.topic, row.key, row.value, _load_headers(row.headers))


def _dump_headers(headers: Headers) -> str:
    return json.dumps([[name, value.hex()] for name, value in headers])


def _load_headers(text: str) -> Headers:
    return tuple((name, bytes.fromhex(value)) for name, value in json.loads(text))
