"""The teacher's meter: every call is priced, checked against the caps before it is made, and written into the
ledger after it.

1. `reserve` prices the most that a call can cost and raises `BudgetExceeded` when that would pass a cap, what
   is under way included.
2. `settle` replaces the reservation by what was really used and hands a `LedgerEntry` to the sink; `release`
   drops it.
3. A reply from the cache costs nothing: it is counted in `cached_calls` and enters no ledger.

Every call that was answered is an entry of its own with a random id: asking twice costs twice, whatever the
reason.

Processes that spend from the same caps see each other through `shared`, which is asked every 10 s: together
they can pass a day's cap by what they spend between two looks, and no more.
"""

from __future__ import annotations

import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from agent.budget import Activity, BudgetExceeded, Caps, LedgerEntry, Price, Usage, check, priced
from agent.items import Frozen
from streams.clock import Clock, SystemClock

LOOK_EVERY_S = 10.0
LedgerSink = Callable[[LedgerEntry], None]
"""Keeps entries: a store's table, a list in a test. Called from several threads; an exception stops the
call's use."""
SharedLedger = Callable[[str], Sequence[LedgerEntry]]
"""What all processes have spent on a day (`YYYY-MM-DD`), in any grouping that keeps rounds apart. An
exception stops the call."""


def nobody_else(day: str) -> Sequence[LedgerEntry]:
    """For a process that spends alone: what it spends itself it knows."""
    return ()


def no_ledger(entry: LedgerEntry) -> None:
    """A sink that keeps nothing: caps then hold within one process only."""


class MeterReading(Frozen):
    """What a meter has seen: `usage` was paid, `cached_calls` were not."""

    usage: Usage
    cached_calls: int
    by_activity: Mapping[str, Usage]


@dataclass(frozen=True)
class Work:
    """What a call is for: whose account, which round (None: monitoring), which kind of work."""

    student: str
    round_id: str | None
    activity: Activity


@dataclass(frozen=True)
class Meter:
    """Prices, caps and the ledger for one model. `before` is what was spent already, read from the ledger at
    the start.

    Raises `UnpricedModel` at the first call when the model has no price.

    >>> price = Price(prompt_usd_per_mtok=1.0, completion_usd_per_mtok=2.0)
    >>> meter = Meter("m", price, Caps(usd_per_day=0.01))
    >>> work = Work("s", None, "diagnose")
    >>> estimate = meter.reserve(work, prompt_tokens=1000, completion_tokens=1000)
    >>> meter.settle(work, estimate, Usage(calls=1, prompt_tokens=900, completion_tokens=100)).usd
    0.0011
    """

    model: str
    price: Price | None
    caps: Caps = field(default_factory=Caps)
    sink: LedgerSink = no_ledger
    before: Sequence[LedgerEntry] = ()
    shared: SharedLedger = nobody_else
    clock: Clock = field(default_factory=SystemClock)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _spent: dict[tuple[str | None, str], Usage] = field(default_factory=dict, repr=False)
    _under_way: dict[str, LedgerEntry] = field(default_factory=dict, repr=False)
    _by_activity: dict[str, Usage] = field(default_factory=dict, repr=False)
    _looked_at: dict[str, float] = field(default_factory=dict, repr=False)
    _cached: Counter[str] = field(default_factory=Counter, repr=False)

    def __post_init__(self) -> None:
        self._spent.update(_sums({entry.entry_id: entry for entry in self.before}.values()))

    def reserve(self, work: Work, prompt_tokens: int, completion_tokens: int) -> LedgerEntry:
        """Set money aside for the most a call can cost. Raises `BudgetExceeded`, `UnpricedModel`."""
        most = self._priced(Usage(calls=1, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens))
        estimate = self._entry(work, most)
        self._look_around(estimate.day)
        with self._lock:
            stop = check(self.caps, self._entries(estimate), estimate)
            if isinstance(stop, BudgetExceeded):
                raise stop
            self._under_way[estimate.entry_id] = estimate
        return estimate

    def _look_around(self, day: str) -> None:
        """Take over what the ledger says was spent on a day where that is more than is known here: sums only
        grow."""
        if self.caps.usd_per_day is None:
            return
        now = self.clock.monotonic()
        with self._lock:
            if day in self._looked_at and now - self._looked_at[day] < LOOK_EVERY_S:
                return
            self._looked_at[day] = now
        sums = _sums(self.shared(day))
        with self._lock:
            for key, usage in sums.items():
                if usage.usd > self._spent.get(key, Usage()).usd:
                    self._spent[key] = usage

    def settle(self, work: Work, estimate: LedgerEntry, used: Usage) -> Usage:
        """Book what a call used in place of its reservation; returns it with its price."""
        entry = self._entry(work, self._priced(used))
        with self._lock:
            self._under_way.pop(estimate.entry_id, None)
            key = (entry.round_id, entry.day)
            self._spent[key] = self._spent.get(key, Usage()) + entry.usage
            self._by_activity[work.activity] = self._by_activity.get(work.activity, Usage()) + entry.usage
        self.sink(entry)
        return entry.usage

    def release(self, estimate: LedgerEntry) -> None:
        """Give a reservation back: the call was not answered."""
        with self._lock:
            self._under_way.pop(estimate.entry_id, None)

    def cached(self, work: Work, used: Usage) -> Usage:
        """Count a reply from the cache; returns what it cost when it was made."""
        with self._lock:
            self._cached[work.activity] += 1
        return self._priced(used)

    def reading(self) -> MeterReading:
        """What was paid and what was not, so far in this process."""
        with self._lock:
            by_activity = dict(self._by_activity)
            return MeterReading(
                usage=sum(by_activity.values(), Usage()),
                cached_calls=self._cached.total(),
                by_activity=by_activity,
            )

    def _priced(self, usage: Usage) -> Usage:
        return priced({self.model: self.price} if self.price else {}, self.model, usage)

    def _entry(self, work: Work, usage: Usage) -> LedgerEntry:
        day = self.clock.now().date().isoformat()
        known = {"student": work.student, "round_id": work.round_id, "activity": work.activity}
        return LedgerEntry.model_validate(
            {"entry_id": str(uuid.uuid4()), "day": day, "usage": usage, **known}
        )

    def _entries(self, like: LedgerEntry) -> list[LedgerEntry]:
        """The ledger so far in few lines: one sum per round and day, and what is under way."""
        sums = [
            like.model_copy(
                update={"entry_id": f"{round_id}/{day}", "round_id": round_id, "day": day, "usage": usage}
            )
            for (round_id, day), usage in self._spent.items()
        ]
        return [*sums, *self._under_way.values()]


@dataclass(frozen=True)
class Books:
    """Where a teacher's paid work is kept and counted: its replies in the file `replies`, its costs on the
    student's account, under `caps` (see `Meter`)."""

    student: str
    replies: Path
    caps: Caps = field(default_factory=Caps)
    sink: LedgerSink = no_ledger
    before: Sequence[LedgerEntry] = ()
    shared: SharedLedger = nobody_else

    def meter(self, model: str, price: Price | None) -> Meter:
        """The meter of a model on this account."""
        return Meter(model, price, self.caps, self.sink, self.before, self.shared)


def _sums(entries: Iterable[LedgerEntry]) -> dict[tuple[str | None, str], Usage]:
    """What was used per round and day."""
    sums: dict[tuple[str | None, str], Usage] = {}
    for entry in entries:
        key = (entry.round_id, entry.day)
        sums[key] = sums.get(key, Usage()) + entry.usage
    return sums
