"""Drift: has a skill's miss rate risen under this version, or with it? A two-sample likelihood ratio over
every point at which the change may have happened (Siegmund 1985, ch. 3; the one-sided form of ADWIN's
question, Bifet and Gavaldà 2007).

For a skill needed by n answers and missed in m of them, split into n0, m0 before and n1, m1 after, with
l(n, m) = m log(m / n) + (n - m) log(1 - m / n):

    G = l(n0, m0) + l(n1, m1) - l(n, m)  where m1 / n1 > m0 / n0, else 0;    alarm when max over splits G > h

1. The reference is the evidence before the split, at least `reference` opportunities of it. Its
   uncertainty is in G, so there is no miss rate that counts as "in order", and nothing to know beforehand.
2. The law of max G hardly depends on the miss rate, and its tail falls as exp(-h): `threshold` is a formula,
   fitted to simulations of it and checked by others in tests (docs/decisions/0005).
3. Counts enter in closed buckets (as_of > bucket + lateness), gathered to `GRAIN` opportunities. Fewer splits
   and fewer looks can only delay an alarm, so the false-alarm rate holds for every grouping. What a series
   says depends on its own buckets, the settings and the size of the catalog, on nothing else that arrives.
4. An alarm stays until the same scan, the other way round and from the change on, shows a fall by the same
   evidence. Then what was seen before the change and since the fall is the reference, and a new alarm can
   come. A fall without an alarm makes what follows it the reference.
5. A version's series begins with the newest `horizon` opportunities of the versions before it: one that is
   bad from its first answer, or drifts at the moment of its promotion, is seen; what it mended is a fall.

The same scan runs over the part of the answers that nobody could judge or explain. Shares of the traffic are
compared in windows (`TrafficScan`): two-sided, and a new mixture is the reference for the next one.
`agent.scanner` runs all of it over one version.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Literal, NamedTuple

from pydantic import Field

from agent.profile import ALL, RESERVED, UNDECIDED, UNEXPLAINED, Counts
from agent.settings import Settings

Kind = Literal["miss rate", "traffic", "abstention"]
ABSTENTIONS = (UNDECIDED, UNEXPLAINED)
GRAIN = 10
"""Opportunities that are looked at together, at least."""
_COARSE = 0.1
"""Split points are kept this close together, as a part of what came after them."""


class DriftSettings(Settings):
    """What counts as drift.

    `false_alarm` is the probability of any false alarm over all skills of the catalog while each of them is
    needed by `horizon` answers; `reference` how many opportunities come before a change at least. A miss rate
    up to `mastered` is no drift, nor is a rise of the odds by less than `odds_ratio`. `lateness_buckets`: how
    long a bucket stays open after it ends. The shares of traffic are compared in windows of
    `traffic_window` answers; a share drifts when its odds change by `traffic_odds_ratio` at least.
    """

    mastered: float = Field(default=0.10, gt=0, lt=1)
    odds_ratio: float = Field(default=1.3, ge=1)
    false_alarm: float = Field(default=0.01, gt=0, lt=1)
    horizon: int = Field(default=1_000, ge=1)
    reference: int = Field(default=50, ge=1)
    lateness_buckets: int = Field(default=1, ge=0)
    traffic_window: int = Field(default=500, ge=1)
    traffic_odds_ratio: float = Field(default=1.5, ge=1)


DEFAULT_DRIFT = DriftSettings()


@dataclass(frozen=True, slots=True)
class Alarm:
    """One alarm: of which skill or pseudo-skill, at which bucket, and against what.

    `started` is the most likely first bucket of the change; `statistic` passed `threshold` (nats) at
    `bucket`; `before` and `after` are the counts on both sides of the change; `cleared` is the bucket at
    which the alarm ended, None while it stands. For traffic, `needed` counts answers and `missing` those that
    needed the skill. `inherited`: it was raised by answers of the version before, and stood when that was
    replaced.
    """

    kind: Kind
    skill: str
    bucket: int
    started: int
    statistic: float
    threshold: float
    before: Counts
    after: Counts
    cleared: int | None = None
    inherited: bool = False


def sidak(false_alarm: float, tests: int) -> float:
    """Level of one test so that `tests` independent ones raise any false alarm with probability
    `false_alarm`.

    Examples
    --------
    >>> round(sidak(0.01, 10), 6)
    0.001005
    """
    return -math.expm1(math.log1p(-false_alarm) / max(tests, 1))


def threshold(settings: DriftSettings, tests: int) -> float:
    """h, in nats, for one of `tests` series that are watched together.

    log(1 / level) plus what looking at every split and every moment costs: 1.4, 3.8, 5.4 and 6.8 nats in
    simulations of 200, 1,000, 4,000 and 16,000 answers with a reference of 50.

    Examples
    --------
    >>> round(threshold(DriftSettings(), tests=1), 2), round(threshold(DriftSettings(), tests=100), 2)
    (8.5, 13.1)
    """
    looks = 1.3 * math.log(max(settings.horizon / settings.reference, 2.0))
    return looks - math.log(sidak(settings.false_alarm, tests))


def _fit(n: int, m: int) -> float:
    """Largest log-likelihood of m misses in n answers."""
    if m <= 0 or m >= n:
        return 0.0
    return m * math.log(m / n) + (n - m) * math.log1p(-m / n)


def _divergence(n: int, m: int, rate: float) -> float:
    """How much better m misses in n answers fit their own rate than `rate`, in nats."""
    return _fit(n, m) - m * math.log(rate) - (n - m) * math.log1p(-rate)


def _odds(counts: Counts) -> float:
    return (counts.missing + 0.5) / (counts.needed - counts.missing + 0.5)


class DriftWatch:
    """The scan of one series of counts, fed bucket by bucket.

    Examples
    --------
    >>> watch = DriftWatch("gcd", DriftSettings(), tests=1)
    >>> for bucket in range(40):
    ...     watch.add(bucket, {"gcd": Counts(10, 2 if bucket < 30 else 7)})
    >>> [(alarm.started, alarm.bucket, alarm.before) for alarm in watch.alarms]
    [(30, 31, Counts(needed=300, missing=60))]
    """

    def __init__(self, skill: str, settings: DriftSettings, tests: int, kind: Kind = "miss rate") -> None:
        self.alarms: list[Alarm] = []
        self._skill, self._kind, self._settings = skill, kind, settings
        self._h = threshold(settings, tests)
        self._cells: list[_Cell] = []  # oldest first; since an alarm, those since its change
        self._open: _Cell | None = None

    @property
    def active(self) -> Alarm | None:
        """The alarm that stands."""
        return self.alarms[-1] if self.alarms and self.alarms[-1].cleared is None else None

    def add(self, bucket: int, counts: Mapping[str, Counts]) -> None:
        """Take the next closed bucket."""
        needed, missing = counts.get(self._skill, Counts())
        first, n, m = self._open or (bucket, 0, 0)
        self._open = (first, n + needed, m + missing)
        if n + needed < GRAIN:
            return
        self._cells.append(self._open)
        self._open = None
        rise, fall = self._best_splits()
        if (alarm := self.active) is not None:
            if fall.statistic > self._h:
                self.alarms[-1] = replace(alarm, cleared=bucket)
                self._cells = [(alarm.started, *alarm.before), *self._cells[fall.at :]]
        elif rise.statistic > self._h:
            before, after = _sum(self._cells[: rise.at]), _sum(self._cells[rise.at :])
            if _odds(after) >= self._settings.odds_ratio * _odds(before):
                where = (bucket, self._cells[rise.at][0], rise.statistic, self._h)
                self.alarms.append(Alarm(self._kind, self._skill, *where, before, after))
                self._cells = self._cells[rise.at :]
        elif fall.statistic > self._h:
            self._cells = self._cells[fall.at :]

    def succeed(self) -> None:
        """The next answers are of the next version. Of the alarms so far it keeps the one that stands."""
        self.alarms = [replace(self.active, inherited=True)] if self.active else []
        self._cells += [self._open] if self._open else []
        self._open = None

    def _best_splits(self) -> tuple[_Split, _Split]:
        """Where a rise and a fall most likely began; joins cells that have become fine on the way."""
        n, m = _sum(self._cells)
        whole, n1, m1, rise, fall = _fit(n, m), 0, 0, _Split(), _Split()
        kept: list[_Cell] = []
        for first, needed, missing in reversed(self._cells):
            if kept and needed + kept[-1][1] <= _COARSE * (n1 - kept[-1][1]):
                kept[-1] = (first, needed + kept[-1][1], missing + kept[-1][2])
            else:
                kept.append((first, needed, missing))
            n1, m1 = n1 + needed, m1 + missing
            falls = m1 * n < m * n1
            if n1 < n and (falls or self._rises(n - n1, n1, m1, n, m)):
                value = _fit(n - n1, m - m1) + _fit(n1, m1) - whole
                if falls:
                    fall = max(fall, _Split(value, len(kept) - 1))
                    continue
                if m - m1 < self._settings.mastered * (n - n1):
                    value = min(value, _divergence(n1, m1, self._settings.mastered))
                rise = max(rise, _Split(value, len(kept) - 1))
        self._cells = kept[::-1]
        return rise.turned(len(kept)), fall.turned(len(kept))

    def _rises(self, n0: int, n1: int, m1: int, n: int, m: int) -> bool:
        enough = n0 >= self._settings.reference and m1 > self._settings.mastered * n1
        return enough and m1 * n > m * n1


_Cell = tuple[int, int, int]
"""First bucket, needed, missing."""


class _Split(NamedTuple):
    """How much a change explains (0: there is none), and the cell that it begins with."""

    statistic: float = 0.0
    at: int = 0

    def turned(self, cells: int) -> _Split:
        """Its place counted from the other end."""
        return _Split(self.statistic, cells - 1 - self.at)


def _sum(cells: Iterable[_Cell]) -> Counts:
    needed = missing = 0
    for _, n, m in cells:
        needed, missing = needed + n, missing + m
    return Counts(needed, missing)


class TrafficScan:
    """Compares each window of answers with those since the last change, skill by skill (two-sided).

    A window in which some share differs is an alarm of the skill that differs most, and the reference for
    what follows, so it is cleared at once.
    """

    def __init__(self, settings: DriftSettings, tests: int) -> None:
        self.alarms: list[Alarm] = []
        self._settings = settings
        level = min(settings.false_alarm * settings.traffic_window / settings.horizon, 0.5)
        self._h = NormalDist().inv_cdf(1.0 - sidak(level, tests) / 2.0) ** 2 / 2.0
        self._reference: dict[str, int] = {}
        self._window: dict[str, int] = {}
        self._first: int | None = None

    def add(self, bucket: int, counts: Mapping[str, Counts]) -> None:
        """Take the next closed bucket: all skills of it."""
        self._first = bucket if self._first is None else self._first
        _count(self._window, {skill: c.needed for skill, c in counts.items() if _is_share(skill)})
        if self._window.get(ALL, 0) < self._settings.traffic_window:
            return
        alarm = self._compare(bucket, self._first)
        if alarm is not None:
            self.alarms.append(alarm)
            self._reference = {}
        _count(self._reference, self._window)
        self._window, self._first = {}, None

    def succeed(self) -> None:
        """The next answers are of the next version; it keeps the reference."""
        self.alarms = []

    def _compare(self, bucket: int, first: int) -> Alarm | None:
        n0, n1 = self._reference.get(ALL, 0), self._window[ALL]
        best: Alarm | None = None
        for skill in sorted({*self._reference, *self._window} - {ALL}) if n0 else ():
            before, after = Counts(n0, self._reference.get(skill, 0)), Counts(n1, self._window.get(skill, 0))
            ratio = _odds(after) / _odds(before)
            if max(ratio, 1.0 / ratio) < self._settings.traffic_odds_ratio:
                continue
            together = before.plus(after)
            value = _fit(*before) + _fit(*after) - _fit(*together)
            if value > (best.statistic if best else self._h):
                best = Alarm("traffic", skill, bucket, first, value, self._h, before, after, bucket)
        return best


def _is_share(skill: str) -> bool:
    return skill == ALL or not skill.startswith(RESERVED)


def _count(sums: dict[str, int], more: Mapping[str, int]) -> None:
    for skill, count in more.items():
        sums[skill] = sums.get(skill, 0) + count
