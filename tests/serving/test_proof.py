"""The proof, on numbers: what passes, and what is said of what does not."""

from __future__ import annotations

import math

import pytest

from serving.proof import Reference, UnprovenAdapter, prove

TEXTS, CANDIDATES = ((1, 2, 3), (4, 5, 6)), ((7, 8), (7, 9))
BASE = ((-1.0, -2.0), (-3.0, -4.0))
ADAPTER = ((-1.4, -1.6), (-3.4, -3.6))
REFERENCE = Reference(texts=TEXTS, candidates=CANDIDATES, base=BASE, adapter=ADAPTER)


def moved(rows: tuple[tuple[float, ...], ...], by: float) -> list[list[float]]:
    return [[value + by for value in row] for row in rows]


def test_the_adapter_itself_passes_with_its_figures() -> None:
    proof = prove(REFERENCE, moved(BASE, 0.01), moved(ADAPTER, 0.02), tolerance=0.05)
    assert proof.base == pytest.approx(0.01)
    assert proof.adapter == pytest.approx(0.02)
    assert proof.effect == pytest.approx(0.4)


def test_the_base_under_the_adapters_name_is_told() -> None:
    with pytest.raises(UnprovenAdapter, match="serves the base under the adapter's name"):
        prove(REFERENCE, BASE, BASE, tolerance=0.05)
    with pytest.raises(UnprovenAdapter, match="serves the base under the adapter's name"):
        prove(REFERENCE, BASE, BASE, tolerance=10.0)  # however generous the tolerance is


def test_another_base_and_another_adapter_are_told() -> None:
    with pytest.raises(UnprovenAdapter, match="its base is not the adapter's base"):
        prove(REFERENCE, moved(BASE, 0.3), ADAPTER, tolerance=0.05)
    with pytest.raises(UnprovenAdapter, match="does not compute what PEFT does"):
        prove(REFERENCE, BASE, moved(ADAPTER, 0.3), tolerance=0.05)


def test_an_effect_that_drowns_in_rounding_is_not_proven() -> None:
    faint = Reference(
        texts=TEXTS, candidates=CANDIDATES, base=BASE, adapter=tuple(map(tuple, moved(BASE, 0.01)))
    )
    with pytest.raises(UnprovenAdapter):
        prove(faint, BASE, moved(faint.adapter, 0.006), tolerance=0.05)
    prove(faint, BASE, moved(faint.adapter, 0.004), tolerance=0.05)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_never_a_proof(value: float) -> None:
    broken = [[value, -1.6], [-3.4, -3.6]]
    with pytest.raises(UnprovenAdapter):
        prove(REFERENCE, BASE, broken, tolerance=1e9)
    with pytest.raises(UnprovenAdapter):
        prove(REFERENCE, broken, ADAPTER, tolerance=1e9)
