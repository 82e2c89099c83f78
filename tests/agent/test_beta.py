"""The Beta quantile against scipy's."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.beta import cdf, quantile

special = pytest.importorskip("scipy.special", reason="pip install scipy")

shapes = st.floats(min_value=0.5, max_value=5_000.0)


@given(q=st.floats(min_value=0.01, max_value=0.99), a=shapes, b=shapes)
def test_quantile_agrees_with_scipy(q: float, a: float, b: float) -> None:
    assert quantile(q, a, b) == pytest.approx(float(special.betaincinv(a, b, q)), abs=1e-7)


@given(q=st.floats(min_value=0.01, max_value=0.99), a=shapes, b=shapes)
def test_cdf_undoes_quantile(q: float, a: float, b: float) -> None:
    assert cdf(quantile(q, a, b), a, b) == pytest.approx(q, abs=1e-6)


def test_symmetry_and_ends() -> None:
    assert quantile(0.05, 3.0, 7.0) == pytest.approx(1.0 - quantile(0.95, 7.0, 3.0))
    assert cdf(-1.0, 2.0, 2.0) == 0.0 and cdf(2.0, 2.0, 2.0) == 1.0


@pytest.mark.parametrize(
    ("q", "a", "b"),
    [(0.0, 1.0, 1.0), (1.0, 1.0, 1.0), (0.5, 0.0, 1.0), (0.5, 1.0, math.inf), (0.5, math.nan, 1.0)],
)
def test_nonsense_is_refused(q: float, a: float, b: float) -> None:
    with pytest.raises(ValueError):
        quantile(q, a, b)
