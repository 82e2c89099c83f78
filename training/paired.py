"""Tests for two students measured on the same items. `gained`: only the challenger is right; `lost`: only the
champion is.

- `mcnemar_p`: exact one-sided McNemar test that the challenger is better (conditional binomial);
  `sign_flip_p` is the same test for answers sampled several times, where an item's difference is a fraction.
- `tango_p`: one-sided score test that the challenger is *not worse by the margin* (Tango 1998, Statistics in
  Medicine 17:891-908). Its exact size at alpha .01 and margin .10 is at most .0104 for 50 to 400 items
  (tests/training/test_paired.py).
- `equivalent_counts`: weighted or fractional differences as the gains and losses with the same mean and
  variance, so that Tango's test serves for them too.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Numbers = float | Floats

_NORMAL = NormalDist()
FINEST = 120
"""Differences are taken as multiples of 1/s, s at most this: every share of up to 6 samples, and of 8, 10,
12, is exact.
"""


class PairedCounts(NamedTuple):
    """Gains and losses among `items`; fractions for sampled answers and for weighted items."""

    gained: float
    lost: float
    items: float


def mcnemar_p(gained: int, lost: int) -> float:
    """P(at least `gained` of the discordant items are gains) when gains and losses are equally likely.

    >>> mcnemar_p(5, 0)
    0.03125
    >>> mcnemar_p(0, 0)
    1.0
    """
    discordant = gained + lost
    ways = sum(math.comb(discordant, k) for k in range(gained, discordant + 1))
    return ways / (1 << discordant)


def sign_flip_p(differences: Floats) -> float:
    """Exact one-sided sign-flip test that the mean difference (challenger - champion, each in [-1, 1]) is
    above 0.

    Under "no difference" each item's sign is a fair coin, whatever its size. With all differences -1, 0 or 1
    this is McNemar's.

    >>> sign_flip_p(np.array([1.0, 1.0, 1.0, 1.0, 1.0, 0.0]))
    0.03125
    >>> round(sign_flip_p(np.array([0.5, 0.5, -0.25])), 6)
    0.25
    """
    steps = _steps(differences)
    sizes, counts = np.unique(np.abs(steps[steps != 0]), return_counts=True)
    if sizes.tolist() in ([], [1]):
        return mcnemar_p(int((steps > 0).sum()), int((steps < 0).sum()))
    chances = np.ones(1)
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        spread = np.zeros(size * count + 1)
        spread[::size] = _coins(count)
        chances = np.convolve(chances, spread)
    return min(1.0, float(chances[int(steps[steps > 0].sum()) :].sum()))


def _steps(differences: Floats) -> npt.NDArray[np.int64]:
    """The differences in units of the coarsest grid that holds them all."""
    for scale in range(1, FINEST):
        scaled = differences * scale
        if np.abs(scaled - np.rint(scaled)).max(initial=0.0) < 1e-6:
            break
    else:
        scaled = differences * FINEST
    return np.rint(scaled).astype(np.int64)


def _coins(count: int) -> Floats:
    """Binomial(count, 1/2) probabilities."""
    logs = [
        math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) for k in range(count + 1)
    ]
    weights = np.exp(np.array(logs) - count * math.log(2))
    return np.asarray(weights / weights.sum(), dtype=np.float64)


def equivalent_counts(differences: Floats, weights: Floats) -> PairedCounts:
    """Counts with the weighted mean of the differences and its variance; `items` is the effective number.

    Plain counts for equal weights and differences of -1, 0 or 1.
    """
    total, squares = float(weights.sum()), float((weights**2).sum())
    if total <= 0:
        return PairedCounts(0.0, 0.0, 0.0)
    items = total**2 / squares
    mean = float(weights @ differences) / total
    flips = max(abs(mean), float(weights**2 @ differences**2) / squares)
    return PairedCounts(items * (flips + mean) / 2, items * (flips - mean) / 2, items)


def loss_z(counts: PairedCounts) -> float:
    """How many standard errors the challenger is worse, with a continuity correction; for large sets of
    items.
    """
    flips = counts.gained + counts.lost
    return (counts.lost - counts.gained - 1) / math.sqrt(flips) if flips > 0 else 0.0


def upper_tail(z: float) -> float:
    """P(a standard normal variable exceeds z)."""
    return 0.5 * math.erfc(z / math.sqrt(2))


def constrained_loss_rate(gained: Numbers, lost: Numbers, items: Numbers, difference: Numbers) -> Floats:
    """Maximum-likelihood rate of losses when gain rate - loss rate is held at `difference` (Tango 1998,
    equation 9).

    >>> round(float(constrained_loss_rate(0, 0, 100, -0.1)), 6)
    0.1
    """
    a = 2 * np.asarray(items, dtype=np.float64)
    b = -gained - lost + (a - gained + lost) * difference
    c = -lost * difference * (1 - difference)
    return np.asarray((np.sqrt(np.maximum(b * b - 4 * a * c, 0.0)) - b) / (2 * a))


def tango_score(gained: Numbers, lost: Numbers, items: Numbers, difference: Numbers) -> Floats:
    """Standardised distance of the observed difference from `difference`; about standard normal if that is
    the true one.
    """
    rate = constrained_loss_rate(gained, lost, items, difference)
    variance = items * (2 * rate + difference * (1 - difference))
    distance = gained - lost - items * difference
    with np.errstate(divide="ignore", invalid="ignore"):
        sure = np.where(distance == 0, 0.0, np.copysign(np.inf, distance))
        return np.where(variance <= 0, sure, distance / np.sqrt(np.maximum(variance, 0.0)))


def tango_p(gained: float, lost: float, items: float, margin: float) -> float:
    """Small when the challenger is surely not worse by `margin` or more. No items: 1.

    >>> tango_p(0, 0, 100, 0.1) < 0.001 < tango_p(2, 8, 100, 0.1)
    True
    """
    return upper_tail(float(tango_score(gained, lost, items, -margin))) if items > 0 else 1.0


def tango_lower_bound(gained: Numbers, lost: Numbers, items: Numbers, alpha: Numbers) -> Floats:
    """One-sided lower confidence bound (level 1 - alpha) of challenger accuracy - champion accuracy; duality
    with `tango_p`.

    Accurate to a millionth. `items` must be above 0.
    """
    z = np.reshape([_NORMAL.inv_cdf(1 - level) for level in np.ravel(alpha)], np.shape(alpha))
    high = np.asarray((gained - lost) / np.asarray(items, dtype=np.float64))
    low = np.full_like(high, -1.0)
    for _ in range(22):
        middle = (low + high) / 2
        passed = tango_score(gained, lost, items, middle) >= z
        low, high = np.where(passed, middle, low), np.where(passed, high, middle)
    return low


def items_needed(discordant_rate: float, margin: float, alpha: float, power: float) -> int:
    """Items for an unchanged skill to pass `tango_p(...) <= alpha` with probability `power`.

    `discordant_rate` is the share of items that flip, either way, between two students of equal accuracy.
    Large-sample formula; exact enumeration agrees within a few per cent above a rate of .04.

    >>> items_needed(0.15, margin=0.10, alpha=0.01, power=0.95)
    268
    """
    half = discordant_rate / 2
    rate = float(constrained_loss_rate(half, half, 1.0, -margin))
    under_null = math.sqrt(2 * rate - margin * (1 + margin))
    reach = _NORMAL.inv_cdf(1 - alpha) * under_null + _NORMAL.inv_cdf(power) * math.sqrt(discordant_rate)
    return math.ceil((reach / margin) ** 2)
