"""What the state store says differently to SQLite and PostgreSQL."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_random


def sqlite_pragmas(connection: Any, _: Any) -> None:
    """What every connection to SQLite is given."""
    connection.isolation_level = None  # `sqlite_begin` opens transactions: a writer takes its lock at once
    # Event ids fall on random pages: larger ones (of a new database only), kept in memory and written home
    # seldom, share writes.
    connection.execute("PRAGMA page_size=16384")
    _switch_to_wal(connection)
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA cache_size=-16384")  # KiB
    connection.execute("PRAGMA wal_autocheckpoint=4000")  # pages


@retry(
    retry=retry_if_exception_type(sqlite3.OperationalError),
    stop=stop_after_delay(30),
    wait=wait_random(0, 0.1),
    reraise=True,
)
def _switch_to_wal(connection: Any) -> None:
    """Several processes may open a new file at once, and this pragma waits for no lock, unlike others."""
    connection.execute("PRAGMA journal_mode=WAL")


def sqlite_begin(connection: sa.Connection) -> None:
    """Begin a transaction, with the write lock unless it is read-only."""
    read_only = connection.get_execution_options().get("read_only", False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


class Statements(NamedTuple):
    """Bulk statements that SQLAlchemy cannot express for both databases: one bound value per column instead
    of one per cell."""

    insert: sa.TextClause
    known: sa.TextClause
    buckets: sa.TextClause


BUCKET_COLUMNS = ("student", "version", "skill", "bucket", "needed", "missing", "written")
_ADD = """ON CONFLICT (student, version, skill, bucket)
    DO UPDATE SET needed = buckets.needed + excluded.needed, missing = buckets.missing + excluded.missing,
        written = excluded.written"""
_INTO = f"INSERT INTO buckets ({', '.join(BUCKET_COLUMNS)}) SELECT"
STATEMENTS = {
    "postgresql": Statements(
        sa.text(
            """INSERT INTO seen_events (source, event_id, day) SELECT * FROM unnest(
            CAST(:sources AS text[]), CAST(:ids AS text[]), CAST(:days AS integer[]))"""
        ),
        sa.text(
            "SELECT event_id FROM seen_events WHERE source = :source AND event_id = ANY(CAST(:ids AS text[]))"
        ),
        sa.text(
            f"""{_INTO} * FROM unnest(
            CAST(:student AS text[]), CAST(:version AS integer[]), CAST(:skill AS text[]),
            CAST(:bucket AS bigint[]), CAST(:needed AS bigint[]), CAST(:missing AS bigint[]),
            CAST(:written AS bigint[])) {_ADD}"""
        ),
    ),
    "sqlite": Statements(
        sa.text(
            "INSERT INTO seen_events (source, event_id, day) SELECT :source, value, :day FROM json_each(:ids)"
        ),
        sa.text(
            "SELECT event_id FROM seen_events "
            "WHERE source = :source AND event_id IN (SELECT value FROM json_each(:ids))"
        ),
        sa.text(
            f"""{_INTO} {", ".join(f"json_extract(value, '$[{n}]')" for n in range(7))}
            FROM json_each(:rows) WHERE true {_ADD}"""
        ),
    ),
}


def check_64_bits(rows: Sequence[tuple[Any, ...]]) -> None:
    """SQLite's JSON functions turn larger integers into floats instead of refusing them."""
    for row in rows:
        if not all(-(2**63) <= number < 2**63 for number in (row[1], row[3], row[4], row[5])):
            raise OverflowError(f"a number in {row} does not fit into 64 bits")
