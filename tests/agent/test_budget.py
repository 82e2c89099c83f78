"""Prices, caps, and stopping before the call that would exceed."""

import random

import pytest
from pydantic import ValidationError

from agent.budget import (
    BudgetState,
    Caps,
    LedgerEntry,
    Price,
    UnpricedModel,
    Usage,
    check,
    left,
    priced,
    rounds_begun,
    spent,
)

DAY, NEXT = "2026-11-02", "2026-11-03"


def line(
    entry_id: str, usd: float = 0.0, round_id: str | None = "r1", day: str = DAY, seconds: float = 0.0
) -> LedgerEntry:
    activity = "train" if seconds else "synthesize"
    return LedgerEntry(
        entry_id=entry_id,
        student="s",
        round_id=round_id,
        day=day,
        activity=activity,
        usage=Usage(usd=usd),
        seconds=seconds,
    )


def test_an_unpriced_model_is_an_error_and_a_free_one_must_say_so() -> None:
    prices = {"local": Price(free=True), "big": Price(prompt_usd_per_mtok=1.0, completion_usd_per_mtok=4.0)}
    usage = Usage(calls=1, prompt_tokens=1_000_000, completion_tokens=500_000)
    assert priced(prices, "big", usage).usd == 3.0 and priced(prices, "local", usage).usd == 0.0
    with pytest.raises(UnpricedModel, match=r"'huge'.*priced: big, local"):
        priced(prices, "huge", usage)


@pytest.mark.parametrize(
    "bad",
    [
        {},
        {"prompt_usd_per_mtok": 1.0},
        {"free": True, "prompt_usd_per_mtok": 0.0},
        {"prompt_usd_per_mtok": -1.0},
    ],
)
def test_a_price_is_complete_or_free(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Price.model_validate(bad)


def test_the_call_that_would_exceed_is_stopped_and_the_last_one_that_fits_is_not() -> None:
    caps, ledger = Caps(usd_per_round=1.0), []
    for number in range(10):
        entry = line(f"e{number}", 0.1)
        assert check(caps, ledger, entry) is None
        ledger.append(entry)
    stopped = check(caps, ledger, line("e10", 0.1))
    assert stopped is not None and stopped.cap == "usd_per_round" and stopped.limit == 1.0


def test_a_work_that_costs_nothing_is_never_stopped_by_money() -> None:
    assert check(Caps(usd_per_round=0.0, usd_per_day=0.0), [line("a", 5.0)], line("b")) is None


def test_caps_look_at_their_own_day_and_round() -> None:
    ledger = [line("a", 0.9, "r1", DAY), line("b", 0.9, "r2", NEXT)]
    assert check(Caps(usd_per_day=2.0), ledger, line("c", 1.0, "r2", NEXT)) is None
    stopped = check(Caps(usd_per_day=1.5), ledger, line("c", 1.0, "r1", NEXT))
    assert stopped is not None and stopped.cap == "usd_per_day" and stopped.spent == pytest.approx(0.9)
    assert check(Caps(usd_per_round=1.0), ledger, line("d", 5.0, round_id=None)) is None


def test_training_seconds_are_capped() -> None:
    ledger = [line("a", seconds=50.0)]
    caps = Caps(train_seconds_per_day=60.0)
    stopped = check(caps, ledger, line("b", seconds=20.0))
    assert stopped is not None and stopped.estimate == 20.0
    assert check(caps, ledger, line("b", seconds=10.0)) is None


def test_a_new_round_is_stopped_and_a_running_one_goes_on() -> None:
    caps, ledger = Caps(rounds_per_day=1), [line("a", 0.1, "r1")]
    assert check(caps, ledger, line("b", 0.1, "r1")) is None
    stopped = check(caps, ledger, line("b", 0.1, "r2"))
    assert stopped is not None and stopped.cap == "rounds_per_day"
    assert check(caps, ledger, line("c", 0.1, "r2", NEXT)) is None


def test_a_round_counts_on_the_day_it_began() -> None:
    ledger = [
        line("b", 0.1, "r1", NEXT),
        line("a", 0.1, "r1", DAY),
        line("c", 0.1, "r2", NEXT),
        line("d", 0.1, None, NEXT),
    ]
    assert rounds_begun(ledger, DAY) == {"r1"} and rounds_begun(ledger, NEXT) == {"r2"}


def test_redelivered_entries_count_once_and_order_does_not_matter() -> None:
    ledger = [line(f"e{i}", 0.1 * i) for i in range(50)]
    shuffled = ledger + ledger[:20]
    random.Random(0).shuffle(shuffled)
    assert spent(shuffled) == spent(ledger)


def test_what_is_left_today() -> None:
    caps = Caps(usd_per_day=1.0, rounds_per_day=2, train_seconds_per_day=10.0)
    assert left(caps, [line("a", 0.25), line("b", seconds=30.0)], DAY) == BudgetState(1, 0.75, 0.0)
    assert left(Caps(), [line("a", 0.25)], DAY) == BudgetState()
