"""Looking for harm: has any of many skills lost, with the number of looks taken into account?

1. Each skill's losses are held against what its own gains and the other skills' flips lead one to expect
   (`loss_p`). Under "no harm" gains and losses are equally likely, so a skill's loss rate has a Beta
   posterior: prior from the other skills (empirical Bayes, `flip_strength`), evidence from the skill's gains.
   The p-value is the beta-binomial tail at its losses. A flat prior makes it about McNemar's test; what the
   other skills tell about flips halves the items needed for rare skills.
2. The skill's p-values against several earlier students become one (`simes`; Simes 1986, Biometrika
   73:751-754), counted as that many independent ones as they are worth (`independent`; Nyholt 2004, Am. J.
   Hum. Genet. 74:765-769): they share a challenger.
3. All p-values are judged together (`adjusted`): Benjamini-Hochberg with weights (Genovese, Roeder, Wasserman
   2006, Biometrika 93:509-524). Weights grow with a skill's items, fixed before any outcome is seen: a skill
   with three items can show nothing, and giving it a share of the error rate would blind the others. If
   nothing is harmed, anything is reported at most at the rate.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

STRONGEST, WEAKEST = 100.0, 10.0
"""Bounds of the prior's strength, in items: however alike the skills look, one may waver more than the others
(decision 0027).
"""


def loss_p(gained: Floats, lost: Floats, items: Floats, expected: Floats, strength: Floats) -> Floats:
    """P(at least `lost` losses) by skill, when losses are as likely as gains; 1 where there are fewer than
    expected.

    `expected`: the prior's loss rate; `strength`: how many items it is worth.
    """
    a = expected * strength + gained
    b = (1 - expected) * strength + items - gained
    x = np.floor(lost + 1e-9)
    p = np.ones(len(x))
    odd = np.flatnonzero((x >= 1) & (x > items * a / (a + b)))
    if len(odd):
        p[odd] = _tail(x[odd], items[odd], a[odd], b[odd])
    return p


def _tail(x: Floats, n: Floats, a: Floats, b: Floats) -> Floats:
    """Beta-binomial P(X >= x), for x above the mean: first term by log-gamma, the following ones by their
    ratio.
    """
    term = np.exp(
        _log_gamma(n + 1) - _log_gamma(x + 1) - _log_gamma(n - x + 1)
        + _log_gamma(x + a) + _log_gamma(n - x + b) - _log_gamma(n + a + b)
        - _log_gamma(a) - _log_gamma(b) + _log_gamma(a + b)
    )  # fmt: skip
    total = term.copy()
    while (term > 1e-9 * total).any():
        left = np.maximum(n - x, 0.0)
        term = term * left / (x + 1) * (x + a) / np.maximum(left - 1 + b, 1e-12)
        total += term
        x = x + 1
    return np.minimum(total, 1.0)


def _log_gamma(values: Floats) -> Floats:
    return np.array([math.lgamma(value) for value in values.tolist()])


def flip_strength(flips: Floats, items: Floats) -> float:
    """How alike the skills' flip rates are, as the number of items that a prior is worth; method of moments,
    within bounds.

    `flips`: gains per skill, not those of the target skills.
    """
    kept = items > 0
    flips, items = flips[kept], items[kept]
    total = float(items.sum())
    mean = float(flips.sum()) / total if total else 0.0
    spread = total - float((items**2).sum()) / total - (len(items) - 1) if total else 0.0
    if not 0 < mean < 1 or spread <= 0:
        return WEAKEST
    excess = float((items * (flips / items - mean) ** 2).sum()) / (mean * (1 - mean)) - (len(items) - 1)
    correlation = min(max(excess / spread, 1 / (STRONGEST + 1)), 1 / (WEAKEST + 1))
    return 1 / correlation - 1


def simes(p_values: Floats, independent: float) -> Floats:
    """One p-value per row for "nothing in the row is harmed"; the row's values are worth that many
    independent ones.

    >>> simes(np.array([[0.01, 0.02, 0.9]]), independent=3.0).round(3).tolist()
    [0.03]
    """
    count = p_values.shape[1]
    worth = np.linspace(1.0, independent, count)
    return np.asarray(
        np.minimum((np.sort(p_values, axis=1) * independent / worth).min(axis=1), 1.0), dtype=np.float64
    )


def independent_looks(differences: Floats) -> float:
    """How many independent comparisons the rows (one per earlier student, by item) are worth, by the spread
    of their correlation's eigenvalues: from 1 (all the same) to their number.
    """
    count = len(differences)
    if count < 2 or (differences.std(axis=1) == 0).any():
        return float(count)
    eigenvalues = np.linalg.eigvalsh(np.corrcoef(differences))
    return float(1 + (count - 1) * (1 - min(eigenvalues.var(ddof=1) / count, 1.0)))


def adjusted(p_values: Floats, weights: Floats) -> Floats:
    """Weighted Benjamini-Hochberg adjusted p-values: those at most q are reported at false discovery rate q.
    Weight 0: 1.

    >>> adjusted(np.array([0.01, 0.04, 0.5]), np.array([1.0, 1.0, 1.0])).round(3).tolist()
    [0.03, 0.06, 0.5]
    """
    result = np.ones(len(p_values))
    kept = np.flatnonzero(weights > 0)
    scaled = p_values[kept] / (weights[kept] / weights[kept].sum())
    order = np.argsort(scaled)
    steps = scaled[order] / np.arange(1, len(kept) + 1)
    result[kept[order]] = np.minimum(np.minimum.accumulate(steps[::-1])[::-1], 1.0)
    return result
