"""STAT-Sel: proportions, distinctness, provenance, determinism."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from agent.catalog import SkillMap
from agent.selection import plan_selection, select_offline

MAP = SkillMap(
    [
        *((f"a{i}", ("add",)) for i in range(200)),
        *((f"g{i}", ("gcd",)) for i in range(30)),
        ("both", ("add", "gcd")),
    ]
)


def test_items_follow_the_weights() -> None:
    plan = plan_selection({"add": 0.7, "gcd": 0.3}, MAP, 60, seed=1)
    assert Counter(pick.skill for pick in plan.picks) == {"add": 42, "gcd": 18} and plan.unique == 60
    assert all(pick.skill in MAP.skills(pick.item_id) for pick in plan.picks)


def test_a_short_pool_passes_its_part_on_and_reports_it() -> None:
    plan = plan_selection({"add": 0.5, "gcd": 0.5}, MAP, 100, seed=1)
    assert len(plan.picks) == plan.unique == 100
    assert plan.pools["gcd"].wanted == 50 and plan.pools["gcd"].pool == 31 and plan.pools["gcd"].picked == 31


def test_everything_is_picked_when_all_is_wanted() -> None:
    assert plan_selection({"add": 0.5, "gcd": 0.5}, MAP, 10_000, seed=1).unique == 231


def test_unused_items_come_first() -> None:
    used = {f"g{i}": 1 for i in range(20)} | {"g20": 3}
    picks = [pick.item_id for pick in plan_selection({"gcd": 1.0}, MAP, 31, 1, used).picks]
    assert not set(picks[:10]) & set(used) and picks[-1] == "g20"


def test_unknown_skills_and_zero_weights_pick_nothing() -> None:
    plan = plan_selection({"nothing": 1.0}, MAP, 5, seed=1)
    assert plan.picks == () and plan.pools["nothing"].pool == 0
    assert {pick.skill for pick in plan_selection({"add": 1.0, "gcd": 0.0}, MAP, 5, seed=1).picks} == {"add"}
    assert plan_selection({}, MAP, 5, seed=1).picks == ()


@given(seed=st.integers(0, 1_000), examples=st.integers(0, 300), share=st.floats(0.01, 0.99))
def test_selection_is_deterministic_and_distinct(seed: int, examples: int, share: float) -> None:
    weights = {"add": share, "gcd": 1 - share}
    plan = plan_selection(weights, MAP, examples, seed)
    assert plan == plan_selection(dict(reversed(weights.items())), MAP, examples, seed)
    assert plan.unique == len(plan.picks) == min(examples, len(MAP))


def test_another_seed_draws_other_items() -> None:
    assert plan_selection({"add": 1.0}, MAP, 20, 1).picks != plan_selection({"add": 1.0}, MAP, 20, 2).picks


def test_offline_draws_five_for_every_pair_and_remembers_the_cause() -> None:
    plan = select_offline([("v1", ["add", "gcd"]), ("v2", ["gcd"])], MAP, limit=100, seed=0)
    assert Counter((pick.cause, pick.skill) for pick in plan.picks) == {
        ("v1", "add"): 5,
        ("v1", "gcd"): 5,
        ("v2", "gcd"): 5,
    }
    assert plan.pools["gcd"].wanted == 10
    for cause in ("v1", "v2"):
        drawn = [pick.item_id for pick in plan.picks if (pick.cause, pick.skill) == (cause, "gcd")]
        assert len(set(drawn)) == 5


def test_offline_never_draws_the_difficult_question_and_keeps_the_limit() -> None:
    plan = select_offline([(f"g{i}", ["gcd"]) for i in range(30)], MAP, limit=40, seed=0)
    assert len(plan.picks) == 40 and all(pick.item_id != pick.cause for pick in plan.picks)
    assert plan == select_offline([(f"g{i}", ["gcd"]) for i in reversed(range(30))], MAP, limit=40, seed=0)


def test_offline_copes_with_a_skill_without_items() -> None:
    plan = select_offline([("v1", ["nothing"])], MAP, limit=9, seed=0)
    assert plan.picks == () and plan.pools["nothing"].picked == 0
