"""The paired tests against published values, brute force and exact enumeration."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from training.paired import (
    constrained_loss_rate,
    equivalent_counts,
    items_needed,
    mcnemar_p,
    sign_flip_p,
    tango_lower_bound,
    tango_p,
    tango_score,
)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (8, 2), (15, 5), (30, 30), (3, 12), (200, 150)])
def test_mcnemar_is_the_conditional_binomial_test(gained: int, lost: int) -> None:
    expected = binomtest(gained, gained + lost, 0.5, alternative="greater").pvalue if gained + lost else 1.0
    assert mcnemar_p(gained, lost) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (5, 0), (30, 18), (200, 150)])
def test_the_sign_flip_test_of_single_answers_is_mcnemar_s(gained: int, lost: int) -> None:
    differences = np.array([1.0] * gained + [-1.0] * lost + [0.0] * 7)
    assert sign_flip_p(differences) == mcnemar_p(gained, lost)


def test_the_sign_flip_test_counts_every_assignment_of_signs() -> None:
    rng = np.random.default_rng(1)
    for steps in (3, 4, 7):
        differences = rng.integers(-steps, steps + 1, 12) / steps
        signs = np.array(list(product((-1, 1), repeat=12)))
        expected = float((signs @ np.abs(differences) >= differences.sum() - 1e-9).mean())
        assert sign_flip_p(differences) == pytest.approx(expected, rel=1e-9)


def test_sampled_equal_students_pass_the_sign_flip_test_in_at_most_five_per_cent() -> None:
    rng = np.random.default_rng(2)
    rates = rng.beta(0.5, 0.5, (400, 60))
    before, after = rng.binomial(4, rates) / 4, rng.binomial(4, rates) / 4
    assert np.mean([sign_flip_p(row) <= 0.05 for row in after - before]) <= 0.07


def test_equivalent_counts_keep_mean_and_variance() -> None:
    plain = equivalent_counts(np.array([1.0, 1.0, -1.0, 0.0, 0.0]), np.ones(5))
    assert plain == pytest.approx((2, 1, 5))
    differences, weights = np.array([0.5, -0.25, 1.0, 0.0]), np.array([1.0, 2.0, 3.0, 1.0])
    gained, lost, items = equivalent_counts(differences, weights)
    assert (gained - lost) / items == pytest.approx(weights @ differences / 7)
    assert (gained + lost) / items**2 == pytest.approx((weights**2 @ differences**2) / 49)
    assert equivalent_counts(differences, np.zeros(4)) == (0, 0, 0)


@pytest.mark.parametrize(
    ("gained", "lost", "items", "difference"),
    [(3, 9, 60, -0.1), (0, 0, 50, -0.1), (12, 2, 44, 0.05), (5, 0, 80, -0.2)],
)
def test_the_constrained_rate_maximises_the_likelihood(
    gained: int, lost: int, items: int, difference: float
) -> None:
    rates = np.linspace(max(0.0, -difference), (1 - difference) / 2, 400_001)[1:-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        gains = gained * np.log(rates + difference) if gained else 0.0
        losses = lost * np.log(rates) if lost else 0.0
        likelihood = gains + losses + (items - gained - lost) * np.log1p(-2 * rates - difference)
    best = float(rates[np.nanargmax(likelihood)])
    assert constrained_loss_rate(gained, lost, items, difference) == pytest.approx(best, abs=1e-5)


def test_the_score_is_the_difference_over_its_constrained_standard_error() -> None:
    for gained, lost, items, difference in [(3, 9, 60, -0.1), (12, 2, 44, 0.05), (0, 7, 200, -0.1)]:
        loss = constrained_loss_rate(gained, lost, items, difference)
        variance = items * (loss + (loss + difference) - difference**2)
        assert tango_score(gained, lost, items, difference) == pytest.approx(
            (gained - lost - items * difference) / variance**0.5
        )


def test_the_bound_is_where_the_score_meets_the_quantile() -> None:
    for gained, lost, items in [(12, 2, 44), (2, 12, 44), (0, 0, 100)]:
        bound = tango_lower_bound(gained, lost, items, 0.025)
        assert tango_score(gained, lost, items, bound) == pytest.approx(norm.ppf(0.975), abs=1e-6)


def test_bound_and_p_value_say_the_same() -> None:
    for gained, lost, items in [(3, 9, 100), (0, 5, 100), (10, 12, 300), (0, 0, 49), (0, 0, 48)]:
        assert (tango_lower_bound(gained, lost, items, 0.01) >= -0.1) == (
            tango_p(gained, lost, items, 0.1) <= 0.01
        )


def outcomes(items: int) -> tuple[np.ndarray, np.ndarray]:
    gained, lost = np.meshgrid(np.arange(items + 1), np.arange(items + 1), indexing="ij")
    kept = gained + lost <= items
    return gained[kept], lost[kept]


def probability(
    items: int, gained: np.ndarray, lost: np.ndarray, gain_rate: float, loss_rate: float
) -> float:
    """Exact probability that (gained, lost) is one of the given pairs, trinomial."""
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, items + 1)))])
    rest = items - gained - lost
    gains = gained * np.log(gain_rate) if gain_rate else np.where(gained > 0, -np.inf, 0.0)
    ways = logs[items] - logs[gained] - logs[lost] - logs[rest]
    return float(
        np.exp(ways + gains + lost * np.log(loss_rate) + rest * np.log(1 - gain_rate - loss_rate)).sum()
    )


def passing(items: int) -> tuple[np.ndarray, np.ndarray]:
    gained, lost = outcomes(items)
    kept = np.array([tango_p(int(g), int(x), items, 0.1) <= 0.01 for g, x in zip(gained, lost, strict=True)])
    return gained[kept], lost[kept]


@pytest.mark.parametrize("items", [50, 60, 75, 100, 150])
def test_a_lost_margin_passes_in_at_most_one_per_cent_exactly(items: int) -> None:
    kept = passing(items)
    assert max(probability(items, *kept, rate, rate + 0.1) for rate in np.linspace(0, 0.3, 16)) <= 0.0105


def test_items_needed_agrees_with_exact_power() -> None:
    assert [items_needed(rate, 0.1, 0.01, 0.95) for rate in (0.02, 0.05, 0.1, 0.15, 0.2, 0.3)] == [
        94,
        135,
        200,
        268,
        338,
        484,
    ]
    items = items_needed(0.1, 0.1, 0.01, 0.95)
    assert probability(items, *passing(items), 0.05, 0.05) == pytest.approx(0.95, abs=0.02)
