"""What work costs: usage of one call, prices, ledger entries, and caps that stop before the call that would
exceed them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from agent.errors import AgentError
from agent.settings import Settings

_SLACK = 1e-9
"""Sums of prices are floats: a cap of 1.00 admits ten calls of 0.10."""


class UnpricedModel(AgentError):
    """A model has no price and is not declared free. Give it a price, or `free: true`, in the
    configuration."""


class BudgetExceeded(AgentError):
    """The next piece of work would pass a cap. `check` returns it as a value; raise it to stop the work."""

    def __init__(self, cap: str, limit: float, spent: float, estimate: float) -> None:
        self.cap, self.limit, self.spent, self.estimate = cap, limit, spent, estimate
        super().__init__(
            f"{cap}: {spent:g} spent + {estimate:g} next would exceed {limit:g}; raise the cap or wait"
        )


class Usage(BaseModel):
    """Tokens, calls and money of some teacher work; adds up.

    >>> Usage(calls=1, prompt_tokens=10) + Usage(calls=2, usd=0.5)
    Usage(calls=3, prompt_tokens=10, completion_tokens=0, usd=0.5)
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    calls: int = Field(default=0, ge=0)
    prompt_tokens: int = Field(default=0, ge=0)
    completion_tokens: int = Field(default=0, ge=0)
    usd: float = Field(default=0.0, ge=0)

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            calls=self.calls + other.calls,
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            usd=self.usd + other.usd,
        )


Activity = Literal["diagnose", "label", "synthesize", "train"]


class LedgerEntry(BaseModel):
    """One line of the ledger: what was spent, on what, for which round (None: monitoring)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    entry_id: str
    student: str
    round_id: str | None
    day: str
    activity: Activity
    usage: Usage = Usage()
    seconds: float = Field(default=0.0, ge=0)


class Price(BaseModel):
    """What a model costs, in US dollars per million tokens; or that it is free, said in so many words.

    Examples
    --------
    >>> price = Price(prompt_usd_per_mtok=2.0, completion_usd_per_mtok=10.0)
    >>> price.usd(prompt_tokens=1_000, completion_tokens=100)
    0.003
    >>> Price(free=True).usd(10, 10)
    0.0
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt_usd_per_mtok: float | None = Field(default=None, ge=0)
    completion_usd_per_mtok: float | None = Field(default=None, ge=0)
    free: bool = False

    @model_validator(mode="after")
    def _priced_or_free(self) -> Price:
        prices = (self.prompt_usd_per_mtok, self.completion_usd_per_mtok)
        if self.free and prices != (None, None):
            raise ValueError("a model is either free or has prices, not both")
        if not self.free and None in prices:
            raise ValueError("give both prices in US dollars per million tokens, or free: true")
        return self

    def usd(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Cost of one call."""
        if self.prompt_usd_per_mtok is None or self.completion_usd_per_mtok is None:
            return 0.0
        return (
            prompt_tokens * self.prompt_usd_per_mtok + completion_tokens * self.completion_usd_per_mtok
        ) / 1e6


def priced(prices: Mapping[str, Price], model: str, usage: Usage) -> Usage:
    """Return `usage` with its cost by the price list.

    Raises
    ------
    UnpricedModel
        When the list does not know the model: an unknown cost is an error, not zero.
    """
    if model not in prices:
        raise UnpricedModel(
            f"no price for model {model!r}: configure its prices, or free: "
            f"true (priced: {', '.join(sorted(prices)) or 'none'})"
        )
    return usage.model_copy(update={"usd": prices[model].usd(usage.prompt_tokens, usage.completion_tokens)})


class Caps(Settings):
    """Upper limits, None for no limit. Seconds are training seconds; a round counts on the day of its first
    entry."""

    usd_per_round: float | None = Field(default=None, ge=0)
    usd_per_day: float | None = Field(default=None, ge=0)
    rounds_per_day: int | None = Field(default=None, ge=0)
    train_seconds_per_day: float | None = Field(default=None, ge=0)


@dataclass(frozen=True, slots=True)
class Spent:
    """What a set of ledger entries adds up to."""

    usd: float
    train_seconds: float
    round_ids: frozenset[str]


def spent(entries: Iterable[LedgerEntry]) -> Spent:
    """Add entries up; one that comes twice (same `entry_id`) counts once, and their order does not matter.

    Examples
    --------
    >>> paid = {"entry_id": "a", "student": "s", "round_id": "r", "day": "2026-11-02", "activity": "diagnose"}
    >>> line = LedgerEntry(**paid, usage=Usage(usd=0.1))
    >>> spent([line, line])
    Spent(usd=0.1, train_seconds=0.0, round_ids=frozenset({'r'}))
    """
    once = {entry.entry_id: entry for entry in entries}.values()
    return Spent(
        usd=math.fsum(entry.usage.usd for entry in once),
        train_seconds=math.fsum(entry.seconds for entry in once if entry.activity == "train"),
        round_ids=frozenset(entry.round_id for entry in once if entry.round_id is not None),
    )


def check(caps: Caps, entries: Sequence[LedgerEntry], estimate: LedgerEntry) -> BudgetExceeded | None:
    """Say whether the next piece of work, priced by its `estimate`, would pass a cap; call it before the
    work.

    `entries` is the ledger so far; what it covers (one student, or all) is the scope of the caps.

    Examples
    --------
    >>> paid = {"entry_id": "a", "student": "s", "round_id": "r", "day": "2026-11-02", "activity": "diagnose"}
    >>> line = LedgerEntry(**paid, usage=Usage(usd=0.6))
    >>> print(check(Caps(usd_per_day=1.0), [line], line.model_copy(update={"entry_id": "b"})))
    usd_per_day: 0.6 spent + 0.6 next would exceed 1; raise the cap or wait
    """
    day = spent(entry for entry in entries if entry.day == estimate.day)
    this = spent(entry for entry in entries if entry.round_id == estimate.round_id)
    usd, seconds = estimate.usage.usd, estimate.seconds if estimate.activity == "train" else 0.0
    in_round = estimate.round_id is not None
    is_new = in_round and not this.round_ids
    begun = len(rounds_begun(entries, estimate.day))
    limits = (
        ("usd_per_round", caps.usd_per_round if in_round else None, this.usd, usd),
        ("usd_per_day", caps.usd_per_day, day.usd, usd),
        ("train_seconds_per_day", caps.train_seconds_per_day, day.train_seconds, seconds),
        ("rounds_per_day", caps.rounds_per_day if is_new else None, float(begun), 1.0),
    )
    for cap, limit, so_far, more in limits:
        if limit is not None and more > 0 and so_far + more > limit + _SLACK:
            return BudgetExceeded(cap, limit, so_far, more)
    return None


def rounds_begun(entries: Iterable[LedgerEntry], day: str) -> frozenset[str]:
    """Ids of the rounds whose first entry is of `day` (ISO dates compare as text)."""
    first: dict[str, str] = {}
    for entry in entries:
        if entry.round_id is not None:
            first[entry.round_id] = min(entry.day, first.get(entry.round_id, entry.day))
    return frozenset(round_id for round_id, began in first.items() if began == day)


@dataclass(frozen=True, slots=True)
class BudgetState:
    """What is left today, for the policy; None means no limit."""

    rounds_left_today: int | None = None
    usd_left_today: float | None = None
    train_seconds_left_today: float | None = None


def left(caps: Caps, entries: Sequence[LedgerEntry], day: str) -> BudgetState:
    """What the caps leave for the rest of `day`.

    Examples
    --------
    >>> left(Caps(rounds_per_day=4), [], "2026-11-02")
    BudgetState(rounds_left_today=4, usd_left_today=None, train_seconds_left_today=None)
    """
    today = spent(entry for entry in entries if entry.day == day)
    begun = len(rounds_begun(entries, day))
    return BudgetState(
        rounds_left_today=None if caps.rounds_per_day is None else max(caps.rounds_per_day - begun, 0),
        usd_left_today=None if caps.usd_per_day is None else max(caps.usd_per_day - today.usd, 0.0),
        train_seconds_left_today=(
            None
            if caps.train_seconds_per_day is None
            else max(caps.train_seconds_per_day - today.train_seconds, 0.0)
        ),
    )
