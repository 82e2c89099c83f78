"""Seeded orders and proportional shares."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.chance import allot, ordered

weights = st.dictionaries(st.sampled_from("abcdef"), st.floats(0, 10), max_size=6)


@given(total=st.integers(0, 200), shares=weights, data=st.data())
def test_allotment_uses_everything_there_is_room_for(
    total: int, shares: dict[str, float], data: st.DataObject
) -> None:
    caps = {name: data.draw(st.integers(0, 60)) for name in shares}
    parts = allot(total, shares, caps)
    assert set(parts) == set(shares) and all(0 <= parts[name] <= caps[name] for name in parts)
    assert sum(parts.values()) == min(total, sum(caps[name] for name in shares if shares[name] > 0))


@given(total=st.integers(0, 200), shares=weights)
def test_allotment_is_proportional_to_within_one(total: int, shares: dict[str, float]) -> None:
    parts, whole = allot(total, shares), sum(shares.values())
    for name, weight in shares.items():
        if whole > 1e-6:
            assert abs(parts[name] - total * weight / whole) <= 1.000001


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_allotment_refuses_nonsense(bad: float) -> None:
    with pytest.raises(ValueError):
        allot(3, {"a": bad})


def test_new_items_leave_the_order_of_the_old_ones() -> None:
    old, new = [f"q{i}" for i in range(50)], [f"n{i}" for i in range(50)]
    assert [item for item in ordered(old + new, 7) if item in old] == ordered(old, 7)
    assert ordered(old, 7) != ordered(old, 8)
