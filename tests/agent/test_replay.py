"""Replay: half of the round, half of it earlier targets, deterministic."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.catalog import SkillMap
from agent.replay import ReplaySettings, keep, plan_replay

NEW = [f"n{i}" for i in range(100)]
POOL = tuple(f"o{i}" for i in range(500))
ORIGINAL = SkillMap((item, ("add",)) for item in POOL)
FEW = SkillMap((item, ("add",)) for item in POOL[:10])
EARLIER = {"gcd": tuple(f"g{i}" for i in range(80)), "left": tuple(f"l{i}" for i in range(300))}


def test_half_of_the_round_is_replay_and_half_of_that_earlier_targets_evenly() -> None:
    plan = plan_replay(NEW, EARLIER, ORIGINAL, seed=0)
    assert (len(plan.earlier), len(plan.original), plan.short) == (50, 50, 0)
    assert sum(item.startswith("g") for item in plan.earlier) == 25


def test_the_first_round_replays_original_data_only() -> None:
    plan = plan_replay(NEW, {}, ORIGINAL, seed=0)
    assert (len(plan.earlier), len(plan.original), plan.short) == (0, 100, 0)


def test_what_one_source_lacks_the_other_gives() -> None:
    assert len(plan_replay(NEW, EARLIER, FEW, seed=0).earlier) == 90
    short = plan_replay(NEW, {"gcd": ("g1",)}, FEW, seed=0)
    assert (len(short.earlier), len(short.original), short.short) == (1, 10, 89)


def test_no_replay_can_be_asked_for() -> None:
    assert plan_replay(NEW, EARLIER, ORIGINAL, 0, ReplaySettings(share=0.0)).earlier == ()


@given(seed=st.integers(0, 99), new=st.integers(0, 60), shared=st.integers(0, 40))
def test_replay_is_distinct_new_and_independent_of_input_order(seed: int, new: int, shared: int) -> None:
    fresh = [f"n{i}" for i in range(new)] + list(POOL[:shared])
    plan = plan_replay(fresh, EARLIER, ORIGINAL, seed)
    ids = [*plan.earlier, *plan.original]
    assert len(set(ids)) == len(ids) == len(fresh) - plan.short and not set(ids) & set(fresh)
    assert plan == plan_replay(
        fresh[::-1], dict(reversed(EARLIER.items())), SkillMap((item, ("add",)) for item in POOL[::-1]), seed
    )


@given(split=st.integers(0, 300))
def test_the_reservoir_does_not_depend_on_the_order_of_rounds(split: int) -> None:
    settings, ids = ReplaySettings(capacity=40), EARLIER["left"]
    first, second = {"left": ids[:split]}, {"left": ids[split:]}
    one = keep(keep({}, first, 5, settings), second, 5, settings)
    assert one == keep(keep({}, second, 5, settings), first, 5, settings) == keep(one, first, 5, settings)
    assert len(one["left"]) == 40


@pytest.mark.parametrize("bad", [{"share": 1.0}, {"earlier_share": 1.1}, {"capacity": -1}])
def test_settings_are_checked(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        ReplaySettings(**bad)  # type: ignore[arg-type]


def test_half_of_the_original_replay_needs_several_skills_with_equal_parts_for_each_combination() -> None:
    chains = {f"c{i}": ("add", "sub") for i in range(200)} | {f"d{i}": ("sub", "mul") for i in range(30)}
    original = SkillMap([*((item, ("add",)) for item in POOL), *chains.items()])
    plan = plan_replay(NEW, {}, original, seed=0)
    assert (len(plan.original), plan.short) == (100, 0)
    drawn = [item for item in plan.original if item in chains]
    assert len(drawn) >= 50 and sum(item.startswith("d") for item in plan.original[:50]) == 25
    without = plan_replay(NEW, {}, original, 0, ReplaySettings(composition_share=0.0))
    assert len(without.original) == 100 and sum(item.startswith("d") for item in without.original) > 25


def test_singles_fill_up_where_compositions_are_few() -> None:
    original = SkillMap([*((item, ("add",)) for item in POOL), ("c0", ("add", "sub"))])
    plan = plan_replay(NEW, {}, original, seed=0)
    assert len(plan.original) == 100 and "c0" in plan.original
