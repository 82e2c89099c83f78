"""STAT-Syn: enough requests, good use of references, determinism."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.catalog import SkillMap
from agent.plan import StrategySettings
from agent.synthesis import plan_synthesis

MAP = SkillMap([*((f"g{i}", ("gcd",)) for i in range(10)), ("only", ("left",))])


@given(
    wanted=st.integers(0, 200),
    per_prompt=st.integers(1, 5),
    acceptance=st.floats(0.1, 1.0),
    pairs=st.floats(1.0, 3.0),
    seed=st.integers(0, 99),
)
def test_the_plan_should_yield_what_is_wanted(
    wanted: int, per_prompt: int, acceptance: float, pairs: float, seed: int
) -> None:
    settings = StrategySettings(questions=per_prompt, acceptance=acceptance, pairs_per_question=pairs)
    plan = plan_synthesis({"gcd": wanted}, MAP, seed, settings)
    expected = sum(request.count for request in plan) * settings.examples_per_question
    assert wanted - 1e-6 <= expected < wanted + pairs
    assert all(1 <= request.count <= per_prompt and len(set(request.references)) == 3 for request in plan)
    assert plan == plan_synthesis({"gcd": wanted}, MAP, seed, settings)


def test_references_are_used_evenly() -> None:
    plan = plan_synthesis({"gcd": 120}, MAP, seed=0, settings=StrategySettings(acceptance=1.0))
    uses = Counter(item for request in plan for item in request.references)
    assert len(uses) == 10 and max(uses.values()) - min(uses.values()) <= 2


def test_small_and_missing_pools_get_fewer_references() -> None:
    plan = plan_synthesis({"left": 2, "new": 2}, MAP, seed=0)
    assert {request.skill: request.references for request in plan} == {"left": ("only",), "new": ()}


def test_requests_differ_in_seed_and_identity() -> None:
    plan = plan_synthesis({"gcd": 60, "left": 10}, MAP, seed=0)
    assert (
        len({request.request_id for request in plan}) == len({request.seed for request in plan}) == len(plan)
    )


@pytest.mark.parametrize(
    "bad",
    [
        {"questions": 0},
        {"acceptance": 0.0},
        {"acceptance": 1.5},
        {"pairs_per_question": 0.5},
        {"pairs_per_question": 4.0},
    ],
)
def test_settings_are_checked(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        StrategySettings(**bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="negative"):
        plan_synthesis({"gcd": -1}, MAP, 0)
