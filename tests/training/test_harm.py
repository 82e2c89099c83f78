"""The search for harm: its p-values against brute force and their size, its list of discoveries against the
definition.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import betabinom

from training.harm import STRONGEST, WEAKEST, adjusted, flip_strength, independent_looks, loss_p, simes


def test_the_p_value_is_the_beta_binomial_tail() -> None:
    rng = np.random.default_rng(0)
    items = rng.integers(1, 900, 200).astype(float)
    gained, lost = np.floor(items * rng.uniform(0, 0.1, 200)), np.floor(items * rng.uniform(0, 0.4, 200))
    expected, strength = rng.uniform(0.01, 0.1, 200), rng.uniform(1, 100, 200)
    tail = betabinom.sf(
        lost - 1, items, expected * strength + gained, (1 - expected) * strength + items - gained
    )
    found = loss_p(gained, lost, items, expected, strength)
    assert found[found < 1] == pytest.approx(tail[found < 1], rel=1e-6, abs=1e-9)
    assert (found < 1).sum() > 80 and (tail[found == 1] > 0.3).all()


@pytest.mark.parametrize("spread", [0.0, 0.5])
def test_a_harmless_catalog_is_seldom_accused(spread: float) -> None:
    """112 skills with Zipf shares of 2,000 items; flip rates alike, or with a coefficient of variation of a
    half.
    """
    rng, accused = np.random.default_rng(1), 0
    for _ in range(200):
        items = np.maximum(
            rng.multinomial(2_000, (shares := 1 / np.arange(1, 113)) / shares.sum()), 1
        ).astype(float)
        rates = 0.05 * (rng.gamma(1 / spread**2, spread**2, 112) if spread else np.ones(112))
        gained, lost = (
            rng.binomial(items.astype(int), np.minimum(rates, 0.4)).astype(float) for _ in range(2)
        )
        others = items.sum() - items
        expected = (gained.sum() + lost.sum() - gained - lost) / 2 / others
        p_values = loss_p(gained, lost, items, expected, np.full(112, flip_strength(gained, items)))
        accused += bool((adjusted(p_values, np.minimum(items, 300) ** 2) <= 0.05).any())
    assert accused <= 20


def test_the_prior_is_strong_where_skills_are_alike() -> None:
    rng, items = np.random.default_rng(2), np.full(100, 200.0)
    alike, unlike = rng.binomial(200, 0.05, 100), rng.binomial(200, rng.gamma(0.5, 0.1, 100).clip(0, 0.5))
    assert flip_strength(alike.astype(float), items) == pytest.approx(STRONGEST)
    assert flip_strength(unlike.astype(float), items) < 30
    assert flip_strength(np.zeros(3), np.full(3, 9.0)) == flip_strength(np.zeros(0), np.zeros(0)) == WEAKEST


def test_adjusted_p_values_report_what_weighted_benjamini_hochberg_rejects() -> None:
    rng = np.random.default_rng(3)
    for _ in range(50):
        p_values, weights = rng.uniform(0, 0.2, 12) ** 2, rng.uniform(0, 3, 12)
        shares = weights / weights.sum()
        scaled = p_values / shares
        ranks = [k for k in range(1, 13) if np.sort(scaled)[k - 1] <= 0.05 * k]
        limit = 0.05 * max(ranks) if ranks else -1.0
        assert ((adjusted(p_values, weights) <= 0.05) == (scaled <= limit)).all()
    assert adjusted(np.array([0.0, 0.01]), np.array([0.0, 1.0])).tolist() == [1.0, 0.01]


def test_earlier_students_that_are_alike_count_as_one() -> None:
    rng = np.random.default_rng(4)
    same = rng.normal(size=400)
    assert independent_looks(np.array([same, same, same])) == pytest.approx(1.0, abs=1e-6)
    assert independent_looks(rng.normal(size=(3, 400))) == pytest.approx(3.0, abs=0.1)
    assert simes(np.array([[0.01, 0.01, 0.01]]), 1.0).tolist() == [0.01]
    assert simes(np.array([[0.01, 0.5, 0.9]]), 3.0).tolist() == [0.03]
