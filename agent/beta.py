"""The Beta distribution in plain Python: cdf and quantile.

Why not scipy: importing `scipy.special` takes 0.6 s, and this is all the profile needs of it.
`tests/agent/test_beta.py` holds the two against each other. See docs/decisions/0004.
"""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

_TINY = 1e-300
_EPSILON = 1e-12
_MAX_TERMS = 100_000
_MAX_NEWTON = 200


def cdf(x: float, a: float, b: float) -> float:
    """Regularised incomplete beta function I_x(a, b) (DLMF 8.17).

    Raises
    ------
    ValueError
        When `a` or `b` is not a positive finite number.

    Examples
    --------
    >>> round(cdf(0.5, 2.0, 3.0), 6)
    0.6875
    """
    _require_shapes(a, b)
    if x <= 0.0:
        return 0.0
    if x >= 1.0:
        return 1.0
    front = math.exp(_log_norm(a, b) + a * math.log(x) + b * math.log1p(-x))
    if x < (a + 1.0) / (a + b + 2.0):
        return front * _fraction(x, a, b) / a
    return 1.0 - front * _fraction(1.0 - x, b, a) / b


@lru_cache(maxsize=65_536)
def quantile(q: float, a: float, b: float) -> float:
    """Return x with P(Beta(a, b) <= x) = q, to about 1e-9: Newton steps that never leave a bracket.

    Raises
    ------
    ValueError
        When `q` is outside (0, 1), or `a` or `b` is not a positive finite number.

    Examples
    --------
    >>> round(quantile(0.05, 8.0, 4.0), 4)
    0.4356
    """
    if not 0.0 < q < 1.0:
        raise ValueError(f"q must lie strictly between 0 and 1, got {q}")
    _require_shapes(a, b)
    low, high, x = 0.0, 1.0, _start(q, a, b)
    log_norm = _log_norm(a, b)
    for _ in range(_MAX_NEWTON):
        error = cdf(x, a, b) - q
        low, high = (low, x) if error > 0 else (x, high)
        density = math.exp(min(log_norm + (a - 1.0) * math.log(x) + (b - 1.0) * math.log1p(-x), 700.0))
        proposal = x - error / density if density > 0.0 else low
        following = proposal if low <= proposal <= high else (low + high) / 2.0
        if abs(following - x) <= 1e-6 * min(x, 1.0 - x) or not low < following < high:
            return following
        x = following
    return x


def jeffreys(hits: int, misses: int) -> tuple[float, float]:
    """The 90 % interval of a share of which so many are known, with Jeffreys' prior.

    >>> tuple(round(end, 3) for end in jeffreys(5, 5))
    (0.262, 0.738)
    """
    return quantile(0.05, hits + 0.5, misses + 0.5), quantile(0.95, hits + 0.5, misses + 0.5)


def _require_shapes(a: float, b: float) -> None:
    if not (a > 0.0 and b > 0.0 and math.isfinite(a) and math.isfinite(b)):
        raise ValueError(f"shapes of a Beta distribution must be positive and finite, got a={a}, b={b}")


def _log_norm(a: float, b: float) -> float:
    return math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)


def _start(q: float, a: float, b: float) -> float:
    """First guess: a normal on the logit scale (delta method), good when both shapes exceed 1."""
    mean = a / (a + b)
    spread = math.sqrt(1.0 / a + 1.0 / b)
    logit = math.log(mean / (1.0 - mean)) + NormalDist().inv_cdf(q) * spread
    return min(max(1.0 / (1.0 + math.exp(-min(max(logit, -30.0), 30.0))), 1e-12), 1.0 - 1e-12)


def _fraction(x: float, a: float, b: float) -> float:
    """Continued fraction of the incomplete beta function (DLMF 8.17.22), evaluated by the modified Lentz
    method."""
    c, d = 1.0, 1.0 - (a + b) * x / (a + 1.0)
    d = 1.0 / (d if abs(d) > _TINY else _TINY)
    value = d
    for m in range(1, _MAX_TERMS):
        a2m = a + 2.0 * m
        even = m * (b - m) * x / ((a2m - 1.0) * a2m)
        odd = -(a + m) * (a + b + m) * x / (a2m * (a2m + 1.0))
        for term in (even, odd):
            d = 1.0 + term * d
            d = 1.0 / (d if abs(d) > _TINY else _TINY)
            c = 1.0 + term / c
            c = c if abs(c) > _TINY else _TINY
            value *= c * d
        if abs(c * d - 1.0) < _EPSILON:
            return value
    raise ArithmeticError(f"incomplete beta did not converge at x={x}, a={a}, b={b}")
