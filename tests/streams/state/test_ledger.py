"""The ledger in the store (SQLite and PostgreSQL), shared by the meters of several processes."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial

import pytest

from agent.budget import BudgetExceeded, Caps, Price, Usage
from graphs.chat.meter import LOOK_EVERY, Meter, Work
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
    clock.sleep(LOOK_EVERY.total_seconds())
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
