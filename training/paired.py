"""Tests for two students measured on the same items. `gained`: only the challenger is right; `lost`: only the
champion is.

- `mcnemar_p`: exact one-sided McNemar test that the challenger is better (conditional binomial).
- `tango_p`: one-sided score test that the challenger is *not worse by the margin* (Tango 1998, Statistics in
  Medicine 17:891-908). Its exact size at alpha .01 and margin .10 is at most .0104 for 50 to 400 items
  (tests/training/test_paired.py).
"""

from __future__ import annotations

import math
from statistics import NormalDist

_NORMAL = NormalDist()


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


def constrained_loss_rate(gained: float, lost: float, items: float, difference: float) -> float:
    """Maximum-likelihood rate of losses when gain rate - loss rate is held at `difference` (Tango 1998,
    equation 9).

    >>> round(constrained_loss_rate(0, 0, 100, -0.1), 6)
    0.1
    """
    a = 2 * items
    b = -gained - lost + (2 * items - gained + lost) * difference
    c = -lost * difference * (1 - difference)
    return (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)


def tango_score(gained: int, lost: int, items: int, difference: float) -> float:
    """Standardised distance of the observed difference from `difference`; about standard normal if that is
    the true one."""
    rate = constrained_loss_rate(gained, lost, items, difference)
    variance = items * (2 * rate + difference * (1 - difference))
    distance = gained - lost - items * difference
    if variance <= 0:
        return 0.0 if distance == 0 else math.copysign(math.inf, distance)
    return distance / math.sqrt(variance)


def tango_p(gained: int, lost: int, items: int, margin: float) -> float:
    """Small when the challenger is surely not worse by `margin` or more.

    >>> tango_p(0, 0, 100, 0.1) < 0.001 < tango_p(2, 8, 100, 0.1)
    True
    """
    return 1.0 - _NORMAL.cdf(tango_score(gained, lost, items, -margin))


def tango_lower_bound(gained: int, lost: int, items: int, alpha: float) -> float:
    """One-sided lower confidence bound (level 1 - alpha) of challenger accuracy - champion accuracy; duality
    with `tango_p`."""
    z = _NORMAL.inv_cdf(1 - alpha)
    low, high = -1.0, (gained - lost) / items
    for _ in range(50):
        middle = (low + high) / 2
        if tango_score(gained, lost, items, middle) >= z:
            low = middle
        else:
            high = middle
    return low


def items_needed(discordant_rate: float, margin: float, alpha: float, power: float) -> int:
    """Items for an unchanged skill to pass `tango_p(...) <= alpha` with probability `power`.

    `discordant_rate` is the share of items that flip, either way, between two students of equal accuracy.
    Large-sample formula; exact enumeration agrees within a few per cent above a rate of .04.

    >>> items_needed(0.15, margin=0.10, alpha=0.01, power=0.95)
    268
    """
    half = discordant_rate / 2
    rate = constrained_loss_rate(half, half, 1.0, -margin)
    under_null = math.sqrt(2 * rate - margin * (1 + margin))
    reach = _NORMAL.inv_cdf(1 - alpha) * under_null + _NORMAL.inv_cdf(power) * math.sqrt(discordant_rate)
    return math.ceil((reach / margin) ** 2)
