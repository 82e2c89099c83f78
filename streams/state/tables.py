"""The state store's tables, the same on SQLite and PostgreSQL."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import BigInteger, Column, Float, Index, Integer, LargeBinary, MetaData, String, Table, Text

from streams.log import Outgoing, load_headers

ACTIVE = ("planned", "curated", "trained", "judged")  # states of a round that is under way
metadata = MetaData()
_BIG = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers rows only in INTEGER PRIMARY KEY columns

seen_events = Table(
    "seen_events",
    metadata,
    Column("source", String(200), primary_key=True),  # the student; '' where an earlier version did not say
    Column("event_id", String(200), primary_key=True),
    Column("day", Integer),  # of event time, as an ordinal; none: never forgotten
    sqlite_with_rowid=False,
)

# One row (`streams.state.steady`); used on SQLite only.
steady_clock = Table(
    "steady_clock",
    metadata,
    Column("boot_id", String(64), primary_key=True),
    Column("offset_s", Float, nullable=False),
)

# One row: the day from which on `seen_events` is complete.
retention = Table(
    "retention",
    metadata,
    Column("row_id", Integer, primary_key=True),
    Column("from_day", Integer),
)

buckets = Table(
    "buckets",
    metadata,
    Column("student", String(200), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("skill", String(200), primary_key=True),
    Column("bucket", BigInteger, primary_key=True),
    Column("needed", BigInteger, nullable=False),
    Column("missing", BigInteger, nullable=False),
    Column("written", BigInteger, nullable=False, server_default="0"),  # numbers a version's batches
    Index("buckets_by_batch", "student", "version", "written"),
    sqlite_with_rowid=False,
)

offsets = Table(
    "offsets",
    metadata,
    Column("consumer_group", String(200), primary_key=True),
    Column("topic", String(200), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("next_offset", BigInteger, nullable=False),
)

outbox = Table(
    "outbox",
    metadata,
    Column("row_id", _BIG, primary_key=True, autoincrement=True),
    Column("topic", String(200), nullable=False),
    Column("key", LargeBinary),
    Column("value", LargeBinary, nullable=False),
    Column("headers", Text, nullable=False),
    Column(
        "record_id", String(36), nullable=False
    ),  # travels as a header: how the relay recognises what it has sent
    Column("claimed_by", String(200)),
    Column("claimed_until", Float),  # epoch seconds
    Column("since", Text),  # the topic's end offsets before the first attempt, as JSON
    Index("outbox_claims", "claimed_until"),
    sqlite_autoincrement=True,
)

topic_ids = Table(
    "topic_ids",
    metadata,
    Column("consumer_group", String(200), primary_key=True),
    Column("topic", String(200), primary_key=True),
    Column("topic_id", String(64), nullable=False),
)

# Records that a group will never read, accepted by a person: from the offset it had to the one it reads on
# from.
gaps = Table(
    "gaps",
    metadata,
    Column("row_id", _BIG, primary_key=True, autoincrement=True),
    Column("consumer_group", String(200), nullable=False),
    Column("topic", String(200), nullable=False),
    Column("number", Integer, nullable=False),
    Column("had", BigInteger, nullable=False),
    Column("reads_on", BigInteger, nullable=False),
)

# Outbox rows that the log can never take, moved here with its answer: nothing else waits for them.
refused = Table(
    "refused",
    metadata,
    Column("record_id", String(36), primary_key=True),
    Column("topic", String(200), nullable=False),
    Column("key", LargeBinary),
    Column("value", LargeBinary, nullable=False),
    Column("headers", Text, nullable=False),
    Column("error", Text, nullable=False),
)

redriven = Table("redriven", metadata, Column("letter_id", String(400), primary_key=True))

rounds = Table(
    "rounds",
    metadata,
    Column("round_id", String(200), primary_key=True),
    Column("student", String(200), nullable=False),
    Column("number", Integer, nullable=False),
    Column("state", String(20), nullable=False),
    Column("run_id", String(64), unique=True),
    Column("record", Text, nullable=False),
    Column("lease_owner", String(200)),
    Column("lease_until", Float),  # epoch seconds, by the database's clock
    Column("fence", BigInteger, nullable=False, server_default="0"),  # how often the round was claimed
    Column("failures", Integer, nullable=False, server_default="0"),
    Column("error", Text),  # of the last failure
    Column("not_before", Float),  # epoch seconds: the next attempt
    Index("one_number_per_student", "student", "number", unique=True),
)
_active = rounds.c.state.in_(ACTIVE)
Index(
    "one_active_round_per_student",
    rounds.c.student,
    unique=True,
    sqlite_where=_active,
    postgresql_where=_active,
)

# Questions to a person (`streams.state.approvals`). `approved`: none while nobody has decided, else 0 or 1.
approvals = Table(
    "approvals",
    metadata,
    Column("round_id", String(200), primary_key=True),
    Column("subject", String(20), primary_key=True),
    Column("student", String(200), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("asked", String(40), nullable=False),
    Column("shown", Text, nullable=False),
    Column("approved", Integer),
    Column("decided_by", Text),
    Column("reason", Text),
)

routes = Table(
    "routes",
    metadata,
    Column("student", String(200), primary_key=True),
    Column("version", Integer, nullable=False),
    Column("previous", Integer),
    Column("round_id", String(200)),
)

ledger = Table(
    "ledger",
    metadata,
    Column("entry_id", String(200), primary_key=True),
    Column("student", String(200), nullable=False),
    Column("round_id", String(200)),
    Column("day", String(10), nullable=False),
    Column("activity", String(20), nullable=False),
    Column("entry", Text, nullable=False),
    Index("ledger_of_a_day", "student", "day"),
)

# The ledger added up, by triggers (streams.state.ledger): what the policy and the meters read. '' is
# monitoring, which belongs to no round.
ledger_sums = Table(
    "ledger_sums",
    metadata,
    Column("student", String(200), primary_key=True),
    Column("day", String(10), primary_key=True),
    Column("round_id", String(200), primary_key=True),
    Column("activity", String(20), primary_key=True),
    Column("entries", BigInteger, nullable=False),
    Column("usd", Float, nullable=False),
    Column("seconds", Float, nullable=False),
    Index("days_of_a_round", "student", "round_id", "day"),
)

labels = Table(
    "labels",
    metadata,
    Column("question_hash", String(64), primary_key=True),
    Column("catalog_hash", String(64), primary_key=True),
    Column("skills", Text, nullable=False),
)

# Questions that traffic brought for the held-out set. `version` is the set's first that holds the question;
# none: of the next one; REFUSED: it cannot be of any.
REFUSED = -1
held_out_items = Table(
    "held_out_items",
    metadata,
    Column("student", String(200), primary_key=True),
    Column("item_id", String(200), primary_key=True),
    Column("item", Text, nullable=False),
    Column("source", String(20), nullable=False),
    Column("version", Integer),
    Index("held_out_by_version", "student", "version"),
)

held_out_versions = Table(
    "held_out_versions",
    metadata,
    Column("student", String(200), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("sha256", String(64), nullable=False),
    Column("items", Integer, nullable=False),
    Column("grown", Integer, nullable=False),
    Column("answers", BigInteger, nullable=False),
)

held_out_drifts = Table(
    "held_out_drifts",
    metadata,
    Column("student", String(200), primary_key=True),
    Column("skill", String(200), primary_key=True),
    Column("outdated", Integer, nullable=False),
)

waits = Table(
    "waits",
    metadata,
    Column("student", String(200), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("since", BigInteger, nullable=False),  # the student's total of answers
)

watermarks = Table(
    "watermarks",
    metadata,
    Column("student", String(200), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("outputs", BigInteger, nullable=False),
    Column("latest", Float, nullable=False),
)

_FIELDS = {
    "sqlite": (
        "coalesce(json_extract({row}.entry, '$.usage.usd'), 0.0)",
        "coalesce(json_extract({row}.entry, '$.seconds'), 0.0)",
    ),
    "postgresql": (
        "coalesce(CAST(CAST({row}.entry AS jsonb) -> 'usage' ->> 'usd' AS double precision), 0.0)",
        "coalesce(CAST(CAST({row}.entry AS jsonb) ->> 'seconds' AS double precision), 0.0)",
    ),
}
_ADD_UP = """INSERT INTO ledger_sums (student, day, round_id, activity, entries, usd, seconds)
    SELECT NEW.student, NEW.day, coalesce(NEW.round_id, ''), NEW.activity, 1, {usd}, {seconds} {where}
    ON CONFLICT (student, day, round_id, activity) DO UPDATE SET
        entries = ledger_sums.entries + 1, usd = ledger_sums.usd + excluded.usd,
        seconds = ledger_sums.seconds + excluded.seconds;"""
_ALL_SUMS = """INSERT INTO ledger_sums (student, day, round_id, activity, entries, usd, seconds)
    SELECT student, day, coalesce(round_id, ''), activity, count(*), sum({usd}), sum({seconds})
    FROM ledger GROUP BY student, day, coalesce(round_id, ''), activity"""


def ledger_triggers(dialect: str) -> list[str]:
    """The statements that fill `ledger_sums` from the rows that are there, and keep it with every new row,
    whoever inserts it."""
    usd, seconds = (field.format(row="NEW") for field in _FIELDS[dialect])
    old = dict(
        zip(("usd", "seconds"), (field.format(row="ledger") for field in _FIELDS[dialect]), strict=True)
    )
    if dialect == "sqlite":
        body = _ADD_UP.format(usd=usd, seconds=seconds, where="WHERE true")
        made = [f"CREATE TRIGGER ledger_sum AFTER INSERT ON ledger BEGIN {body} END"]
    else:
        body = _ADD_UP.format(usd=usd, seconds=seconds, where="")
        made = [
            "CREATE OR REPLACE FUNCTION ledger_sum() RETURNS trigger LANGUAGE plpgsql AS "
            f"$sum$ BEGIN {body} RETURN NULL; END $sum$",
            "CREATE TRIGGER ledger_sum AFTER INSERT ON ledger FOR EACH ROW EXECUTE FUNCTION ledger_sum()",
        ]
    return [_ALL_SUMS.format(**old), *made]


def add_columns(connection: sa.Connection) -> None:
    """Give the tables of an older database the columns that were added since."""
    stored = sa.inspect(connection).get_multi_columns()
    for table in metadata.sorted_tables:
        known = {column["name"] for column in stored[None, table.name]}
        for column in table.columns:
            if column.name not in known:
                definition = sa.schema.CreateColumn(column).compile(dialect=connection.dialect)
                connection.execute(sa.text(f"ALTER TABLE {table.name} ADD COLUMN {definition}"))


def outgoing(row: sa.Row[tuple[object, ...]]) -> Outgoing:
    """The record in a row of the outbox."""
    return Outgoing(row.topic, row.key, row.value, load_headers(row.headers))
