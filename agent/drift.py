"""Per-skill drift: a one-sided Bernoulli CUSUM on closed buckets (Page 1954, Biometrika 41; Reynolds and
Stoumbos 1999).

For a skill missed with probability p0 while it is in order and p1 > p0 once it has got worse, a bucket with n
answers that needed it and m misses adds its log-likelihood ratio:

    S <- max(0, S + m log(p1 / p0) + (n - m) log((1 - p1) / (1 - p0))),   alarm when S > h

The bucket counts as a whole, so nothing depends on the order of the answers inside it. Three consequences:

1. `h` is calibrated answer by answer, and holds for every grouping: both statistics are a maximum over
   starting points, and a grouped one has fewer of them (and fewer looks), so it never exceeds the ungrouped
   one. Buckets can only delay an alarm.
2. A bucket is scanned when it is *closed* (as_of > bucket + lateness). An answer that is later than that
   changes the profile and, at the next scan, the statistic; an alarm that was announced is not taken back by
   the announcer.
3. Only calls to `calibrate` with new arguments simulate; they are cached, so p0 is rounded up to whole per
   cents.

Testing k skills at once raises the chance of one false alarm; each is held to the Sidak level 1 - (1 -
alpha)^(1 / k).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from pydantic import Field

from agent.beta import quantile
from agent.posterior import ProfileView
from agent.profile import Counts
from agent.settings import Settings

_SIMULATED_TAIL = 0.02
"""Smallest false-alarm probability that is simulated directly; further out the exact exponential tail is
used."""

_PRIOR_ANSWERS = 10.0


class DriftSettings(Settings):
    """What counts as drift.

    `mastered` is the lowest miss rate taken as "in order" (p0), `odds_ratio` how much the odds of a miss must
    rise to be looked for (p1), `false_alarm` the probability of any false alarm over all skills while each of
    them is needed by `horizon` answers, `lateness_buckets` how long a bucket stays open after it ends.
    """

    mastered: float = Field(default=0.10, gt=0, lt=1)
    odds_ratio: float = Field(default=1.75, gt=1)
    false_alarm: float = Field(default=0.01, gt=0, lt=1)
    horizon: int = Field(default=1_000, ge=1)
    lateness_buckets: int = Field(default=1, ge=0)
    reference_quantile: float = Field(default=0.8, gt=0, lt=1)


DEFAULT_DRIFT = DriftSettings()


@dataclass(frozen=True, slots=True)
class CusumTest:
    """One calibrated test: miss rates in order and out of order, and the threshold in nats."""

    p0: float
    p1: float
    h: float

    def increment(self, counts: Counts) -> float:
        """Log-likelihood ratio of one bucket, in nats."""
        hits = counts.needed - counts.missing
        return counts.missing * math.log(self.p1 / self.p0) + hits * math.log(
            (1.0 - self.p1) / (1.0 - self.p0)
        )


@dataclass(frozen=True, slots=True)
class CusumState:
    """Where a scan ended: the statistic now, the first bucket that raised the alarm, and where that excursion
    started.

    `started_bucket` estimates when the skill got worse: the first bucket after the statistic last stood at
    zero (before the alarm, or before now when there is none). It is None while the statistic is at zero and
    no alarm was raised.
    """

    statistic: float = 0.0
    alarm_bucket: int | None = None
    started_bucket: int | None = None


def design(reference: Counts, skills: int, settings: DriftSettings = DEFAULT_DRIFT) -> CusumTest:
    """Design the test of one skill out of `skills` tested together.

    p0 is the larger of `mastered` and an upper quantile of the reference's posterior (what the predecessor,
    or the first buckets, showed; its prior is ten pseudo-answers at `mastered`): a short reference gives a
    careful test instead of false alarms. Without a reference p0 is `mastered`.

    Examples
    --------
    >>> test = design(Counts(), skills=1, settings=DriftSettings(mastered=0.2))
    >>> round(test.p0, 2), round(test.p1, 3), 7.0 < test.h < 8.0
    (0.2, 0.304, True)
    """
    p0 = min(math.ceil(100.0 * _in_order(reference, settings) - 1e-9) / 100.0, 0.95)
    odds = settings.odds_ratio * p0 / (1.0 - p0)
    p1 = round(odds / (1.0 + odds), 6)
    return CusumTest(p0, p1, calibrate(p0, p1, sidak(settings.false_alarm, skills), settings.horizon))


def _in_order(reference: Counts, settings: DriftSettings) -> float:
    if not reference.needed:
        return settings.mastered
    a = _PRIOR_ANSWERS * settings.mastered + reference.missing
    b = _PRIOR_ANSWERS * (1.0 - settings.mastered) + reference.needed - reference.missing
    return max(settings.mastered, quantile(settings.reference_quantile, a, b))


def sidak(false_alarm: float, skills: int) -> float:
    """Level of one test so that `skills` independent ones raise any false alarm with probability
    `false_alarm`.

    Examples
    --------
    >>> round(sidak(0.01, 10), 6)
    0.001005
    """
    return -math.expm1(math.log1p(-false_alarm) / max(skills, 1))


@lru_cache(maxsize=4_096)
def calibrate(p0: float, p1: float, false_alarm: float, horizon: int = 1_000, seed: int = 0) -> float:
    """Threshold h at which P(any alarm within `horizon` answers | miss rate p0) is at most `false_alarm`.

    Simulates the statistic's maximum over the horizon and takes a quantile. Beyond a tail of 2 % the quantile
    is extended by log(0.02 / false_alarm): under p0 a likelihood ratio has mean one, so the tail of the
    maximum falls as exp(-h) (Lundberg's exponent is exactly 1; Siegmund 1985, ch. 2).

    Raises
    ------
    ValueError
        Unless 0 < p0 < p1 < 1 and 0 < false_alarm < 1.

    Examples
    --------
    >>> 6.0 < calibrate(0.2, 0.3, 0.02) < 8.0
    True
    >>> round(calibrate(0.2, 0.3, 0.001) - calibrate(0.2, 0.3, 0.02), 6) == round(math.log(20), 6)
    True
    """
    if not 0.0 < p0 < p1 < 1.0 or not 0.0 < false_alarm < 1.0:
        raise ValueError(
            f"need 0 < p0 < p1 < 1 and 0 < false_alarm < 1, got p0={p0}, p1={p1}, false_alarm={false_alarm}"
        )
    maxima = _maxima(p0, p1, horizon, seed)
    simulated = max(false_alarm, _SIMULATED_TAIL)
    return float(np.quantile(maxima, 1.0 - simulated, method="higher")) + math.log(simulated / false_alarm)


@lru_cache(maxsize=256)
def _maxima(p0: float, p1: float, horizon: int, seed: int, streams: int = 8_000) -> np.ndarray:
    """Largest value of the CUSUM in each simulated stream without drift, shape (streams,)."""
    up, down = math.log(p1 / p0), math.log((1.0 - p1) / (1.0 - p0))
    rng = np.random.default_rng(seed)
    statistic, largest = np.zeros(streams), np.zeros(streams)
    for _ in range(horizon):
        statistic += np.where(rng.random(streams) < p0, up, down)
        np.maximum(statistic, 0.0, out=statistic)
        np.maximum(largest, statistic, out=largest)
    return largest


def scan(
    buckets: Mapping[int, Counts], test: CusumTest, as_of_bucket: int, lateness_buckets: int = 1
) -> CusumState:
    """Run one skill's test over its closed buckets, in bucket order.

    Examples
    --------
    >>> test = CusumTest(p0=0.2, p1=1 / 3, h=3.0)
    >>> counts = {1: Counts(10, 2), 2: Counts(10, 6), 3: Counts(10, 6)}
    >>> scan(counts, test, as_of_bucket=5).alarm_bucket
    3
    >>> scan(counts, test, as_of_bucket=4)  # bucket 3 is still open
    CusumState(statistic=2.3356675154201256, alarm_bucket=None, started_bucket=2)
    """
    statistic, alarm, started = 0.0, None, None
    for bucket in sorted(buckets):
        if as_of_bucket <= bucket + lateness_buckets:
            break
        before, statistic = statistic, max(0.0, statistic + test.increment(buckets[bucket]))
        if alarm is None:
            if statistic == 0.0:
                started = None
            elif before == 0.0:
                started = bucket
            if statistic > test.h:
                alarm = bucket
    return CusumState(statistic, alarm, started)


def scan_version(
    view: ProfileView,
    student: str,
    version: int,
    as_of_bucket: int,
    reference: Mapping[str, Counts],
    settings: DriftSettings = DEFAULT_DRIFT,
) -> dict[str, CusumState]:
    """Scan every skill of one version; `reference` gives the counts that define "in order" (missing:
    `mastered`)."""
    skills = view.skills(student, version)
    states = {}
    for skill in skills:
        test = design(reference.get(skill, Counts(0, 0)), len(skills), settings)
        states[skill] = scan(
            view.buckets(student, version, skill), test, as_of_bucket, settings.lateness_buckets
        )
    return states
