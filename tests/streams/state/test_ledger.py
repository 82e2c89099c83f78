"""The ledger in the store (SQLite and PostgreSQL), shared by the meters of several processes."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest

from agent.budget import BudgetExceeded, Caps, LedgerEntry, Price, Usage, left
from graphs.chat.meter import LOOK_EVERY_S, Meter, Work
from streams.clock import HandClock
from streams.state.ledger import book, entries, spent_on
from streams.state.store import StateStore

PRICE = Price(prompt_usd_per_mtok=1.0, completion_usd_per_mtok=1.0)
WATCH, ROUND = Work("s", None, "diagnose"), Work("s", "r1", "synthesize")
TENTH = 100_000  # tokens that cost a tenth of a dollar


def meter(store: StateStore, clock: HandClock, student: str = "s") -> Meter:
    """A worker's, as `loop.tasks.files` makes it."""
    shared = partial(spent_on, store, student)
    return Meter(
        "m", PRICE, Caps(usd_per_day=1.0), partial(book, store), entries(store, student), shared, clock
    )


def spend(one: Meter, tenths: int, work: Work = WATCH) -> None:
    estimate = one.reserve(work, 0, tenths * TENTH)
    one.settle(work, estimate, Usage(calls=1, completion_tokens=tenths * TENTH))


def test_workers_that_run_at_once_share_a_days_cap(store: StateStore) -> None:
    clock = HandClock(datetime(2026, 11, 23, tzinfo=UTC))
    one, other = meter(store, clock), meter(store, clock)
    spend(other, 1)
    spend(one, 3)
    spend(one, 3, ROUND)
    spend(one, 2)
    spend(other, 1)  # the last look was less than 10 s ago: 1.0 is spent together
    clock.sleep(LOOK_EVERY_S)
    for stopped in (one, other):
        with pytest.raises(BudgetExceeded, match=r"usd_per_day: 1 spent \+ 0\.1 next would exceed 1;"):
            spend(stopped, 1)
    spent = {entry.round_id: entry.usage.usd for entry in spent_on(store, "s", "2026-11-23")}
    assert spent == {None: pytest.approx(0.7), "r1": pytest.approx(0.3)}
    clock.sleep(24 * 3600)
    spend(other, 10)


def test_another_students_spending_is_not_counted(store: StateStore) -> None:
    clock = HandClock(datetime(2026, 11, 23, tzinfo=UTC))
    spend(meter(store, clock), 9)
    clock.sleep(60)
    spend(meter(store, clock, "other"), 9, Work("other", None, "diagnose"))


def test_spending_that_is_not_in_the_ledger_yet_is_not_forgotten(store: StateStore) -> None:
    clock = HandClock(datetime(2026, 11, 23, tzinfo=UTC))
    alone = Meter("m", PRICE, Caps(usd_per_day=1.0), shared=partial(spent_on, store, "s"), clock=clock)
    spend(alone, 9)  # its sink keeps nothing
    clock.sleep(60)
    with pytest.raises(BudgetExceeded):
        spend(alone, 2)


def test_sums_of_a_day_are_those_of_the_entries(store: StateStore) -> None:
    lines = [
        ("a", None, "2026-11-23", "diagnose", 0.5, 0.0),
        ("b", None, "2026-11-24", "diagnose", 0.25, 0.0),
        ("c", "r1", "2026-11-23", "synthesize", 1.0, 0.0),
        ("d", "r1", "2026-11-24", "train", 0.0, 30.0),
        ("e", "r2", "2026-11-24", "synthesize", 2.0, 0.0),
        ("e", "r2", "2026-11-24", "synthesize", 2.0, 0.0),  # once more: it counts once
    ]
    for name, round_id, day, activity, usd, seconds in lines:
        entry = {"entry_id": name, "student": "s", "round_id": round_id, "day": day, "activity": activity}
        book(store, LedgerEntry.model_validate(entry | {"usage": Usage(usd=usd), "seconds": seconds}))
    caps = Caps(usd_per_day=5.0, rounds_per_day=3, train_seconds_per_day=100.0)
    for day in ("2026-11-22", "2026-11-23", "2026-11-24", "2026-11-25"):
        assert left(caps, spent_on(store, "s", day), day) == left(caps, entries(store, "s"), day)
    assert left(caps, spent_on(store, "s", "2026-11-24"), "2026-11-24").rounds_left_today == 2


def test_an_older_ledger_is_added_up_when_it_is_opened(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 's.db'}"
    store = StateStore(url)
    book(
        store,
        LedgerEntry.model_validate(
            {
                "entry_id": "a",
                "student": "s",
                "round_id": None,
                "day": "2026-11-23",
                "activity": "label",
                "usage": {"usd": 2},
            }
        ),
    )
    with store.transaction() as connection:
        for statement in ("DROP TRIGGER ledger_sum", "DROP TABLE ledger_sums"):
            connection.exec_driver_sql(statement)
    store.close()
    again = StateStore(url)
    assert [entry.usage.usd for entry in spent_on(again, "s", "2026-11-23")] == [2.0]
