from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.catalog import SkillMap
from agent.decision import SkillTarget
from agent.plan import (
    DataPlan,
    Draw,
    Failure,
    PlanInput,
    StrategyError,
    StrategyName,
    StrategySettings,
    choose_pairs,
)
from agent.strategies import STRATEGIES, plan_strategy, plan_targets, shuffled_names

SKILLS = [f"skill-{number}" for number in range(8)]
POOL = {
    f"q{at}": (SKILLS[at % 8], SKILLS[(at * 3 + 1) % 8]) if at % 3 else (SKILLS[at % 8],) for at in range(160)
}
FAILURES = [
    Failure(
        question_id=f"v{at}",
        needed=(SKILLS[at % 4], SKILLS[at % 4 + 1], SKILLS[7]),
        missing=(SKILLS[at % 4], SKILLS[at % 4 + 1]),
    )
    for at in range(20)
]
NEAREST = {f"v{at}": [f"q{(at * 7 + near) % 160}" for near in range(9)] for at in range(20)}


def given_input(**change: object) -> PlanInput:
    known: dict[str, object] = {
        "skill_map": SkillMap(POOL.items()),
        "item_ids": list(POOL),
        "failures": FAILURES,
        "seed": 3,
        "levels": {item: int(item[1:]) % 5 + 1 for item in POOL},
        "nearest": NEAREST,
    }
    return PlanInput(**(known | change))  # type: ignore[arg-type]


def test_the_defaults_are_the_papers() -> None:
    settings = StrategySettings()
    sizes = (
        settings.k_sel,
        settings.answers,
        settings.references,
        settings.questions,
        settings.solutions,
        settings.min_agreement,
    )
    assert sizes == (5, 3, 3, 2, 3, 2) and settings.pairs == 9_500


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_a_plan_depends_on_seed_and_ids_only(name: StrategyName) -> None:
    turned = given_input(skill_map=SkillMap(reversed(POOL.items())), item_ids=list(reversed(POOL)))
    plan, again = plan_strategy(name, given_input()), plan_strategy(name, turned)
    assert sorted(map(repr, plan.draws)) == sorted(map(repr, again.draws))
    assert sorted(map(repr, plan.requests)) == sorted(map(repr, again.requests))
    if name not in {"original", "augment", "hard", "embed-sel"}:
        assert plan != plan_strategy(name, given_input(seed=4))


def test_stat_sel_draws_five_for_each_missing_skill_of_each_question() -> None:
    plan = plan_strategy("stat-sel", given_input())
    per_target = Counter((draw.cause, draw.skill) for draw in plan.draws)
    assert len(per_target) == 40 and set(per_target.values()) == {5}
    assert all(draw.skill in POOL[draw.item_id] for draw in plan.draws)
    assert (plan.answers, plan.rewritten) == (3, True)


def test_stat_syn_asks_for_two_questions_with_three_references_of_the_skill() -> None:
    plan = plan_strategy("stat-syn", given_input())
    assert len(plan.requests) == 40
    for request in plan.requests:
        assert request.write.count == 2 and len(set(request.write.references)) == 3
        assert all(request.write.skill in POOL[item] for item in request.write.references)
    assert len({request.write.seed for request in plan.requests}) == 40
    more = plan_strategy("stat-syn", given_input(), StrategySettings(prompts=3))
    assert len(more.requests) == 120 and len({request.write.request_id for request in more.requests}) == 120


@pytest.mark.parametrize("name", ["random", "question-skill", "shuffled"])
def test_a_control_draws_as_much_as_stat_sel(name: StrategyName) -> None:
    assert len(plan_strategy(name, given_input()).draws) == len(
        plan_strategy("stat-sel", given_input()).draws
    )


def test_question_skill_may_draw_for_skills_that_are_not_missing() -> None:
    drawn = {draw.skill for draw in plan_strategy("question-skill", given_input()).draws}
    assert SKILLS[7] in drawn and drawn <= {skill for failure in FAILURES for skill in failure.needed}


def test_a_shuffled_profile_is_as_peaked_as_the_true_one_and_aimed_elsewhere() -> None:
    true = Counter(draw.skill for draw in plan_strategy("stat-sel", given_input()).draws)
    shuffled = Counter(draw.skill for draw in plan_strategy("shuffled", given_input()).draws)
    assert sorted(true.values()) == sorted(shuffled.values()) and true != shuffled


@given(st.integers(min_value=2, max_value=30), st.integers(min_value=0, max_value=999))
def test_shuffled_names_keep_no_name(count: int, seed: int) -> None:
    names = [f"s{number}" for number in range(count)]
    turned = shuffled_names(names, names, seed)
    assert sorted(turned.values()) == sorted(names) and all(old != new for old, new in turned.items())


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_a_mix_has_its_share_of_targeted_pairs(share: float) -> None:
    settings = StrategySettings(pairs=80, share=share)
    pairs = choose_pairs(plan_strategy("mix", given_input(), settings), 80, seed=0)
    parts = Counter(pair.draw.part for pair in pairs)
    assert (parts["stat-sel"], parts["random"]) == (round(80 * share), 80 - round(80 * share))


def test_hard_takes_levels_four_and_five() -> None:
    levels = given_input().levels
    assert {levels[draw.item_id] for draw in plan_strategy("hard", given_input()).draws} == {4, 5}


def test_embed_sel_takes_the_nearest_and_embed_syn_shows_them() -> None:
    drawn = plan_strategy("embed-sel", given_input()).draws
    assert [draw.item_id for draw in drawn if draw.cause == "v1"] == NEAREST["v1"][:5]
    asked = [
        request.write.references
        for request in plan_strategy("embed-syn", given_input()).requests
        if request.cause == "v1"
    ]
    assert asked[0] == tuple(NEAREST["v1"][:3])


def test_embed_syn_asks_for_as_many_questions_as_stat_syn_and_names_no_skill() -> None:
    plan, targeted = (plan_strategy(name, given_input()).requests for name in ("embed-syn", "stat-syn"))
    assert sum(request.write.count for request in plan) == sum(request.write.count for request in targeted)
    assert {request.write.skill for request in plan} == {""}
    assert len({request.write.request_id for request in plan}) == len(plan)


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("stat-sel", {"failures": []}, "no difficult questions"),
        ("hard", {"levels": {}}, "field level"),
        ("embed-sel", {"nearest": {}}, "nearest"),
        ("original", {"item_ids": []}, "pool is empty"),
        ("shuffled", {"skill_map": SkillMap([("q0", (SKILLS[0],))])}, "fewer than two skills"),
    ],
)
def test_what_a_strategy_lacks_is_said(name: StrategyName, change: dict[str, object], told: str) -> None:
    with pytest.raises(StrategyError, match=told):
        plan_strategy(name, given_input(**change))


def test_a_missing_skill_without_questions_is_reported() -> None:
    failures = [Failure(question_id="v", needed=("unheard of", SKILLS[0]), missing=("unheard of", SKILLS[0]))]
    plan = plan_strategy("stat-sel", given_input(failures=failures))
    assert plan.empty_skills == {"unheard of": 1} and len(plan.draws) == 5


def test_the_difficult_question_itself_is_never_drawn() -> None:
    failures = [Failure(question_id="q0", needed=(SKILLS[0],), missing=(SKILLS[0],))]
    for name in ("stat-sel", "random", "question-skill"):
        assert "q0" not in {
            draw.item_id for draw in plan_strategy(name, given_input(failures=failures)).draws
        }
    syn = plan_strategy("stat-syn", given_input(failures=failures))
    assert all("q0" not in request.write.references for request in syn.requests)


def test_pairs_are_distinct_usable_and_at_most_the_limit() -> None:
    plan = plan_strategy("stat-sel", given_input())
    pairs = choose_pairs(plan, 50, seed=1, usable=lambda item: item != plan.draws[0].item_id)
    assert len(pairs) == len({(pair.draw.item_id, pair.answer) for pair in pairs}) == 50
    assert plan.draws[0].item_id not in {pair.draw.item_id for pair in pairs}
    everything = choose_pairs(plan, 10_000, seed=1)
    assert len(everything) == plan.unique_items * 3


def test_an_item_drawn_often_is_more_likely_to_be_in() -> None:
    draws = tuple(
        Draw(item, "s", f"v{at}", "p") for item, times in (("often", 9), ("once", 1)) for at in range(times)
    )
    first = Counter(choose_pairs(DataPlan(draws), 1, seed)[0].draw.item_id for seed in range(200))
    assert 160 <= first["often"] <= 195


def test_the_policys_plan_draws_and_asks_for_its_targets_and_names_an_empty_pool() -> None:
    targets = [
        SkillTarget(skill=SKILLS[0], weight=0.5, examples=7, strategy="select"),
        SkillTarget(skill=SKILLS[1], weight=0.5, examples=6, strategy="synthesize"),
    ]
    used = {item: 1 for item in SkillMap(POOL.items()).items(SKILLS[0])[:20]}
    plan = plan_targets(targets, SkillMap(POOL.items()), seed=3, used=used)
    assert len({draw.item_id for draw in plan.draws}) == 7 and {draw.skill for draw in plan.draws} == {
        SKILLS[0]
    }
    assert not used.keys() & {draw.item_id for draw in plan.draws} and plan.sizes == {
        SKILLS[0]: 7,
        SKILLS[1]: 6,
    }
    assert sum(request.write.count for request in plan.requests) == 10 and not plan.rewritten
    with pytest.raises(StrategyError, match="'unheard of'"):
        unheard = SkillTarget(skill="unheard of", weight=1.0, examples=7, strategy="select")
        plan_targets([unheard], SkillMap(POOL.items()), seed=3)


def test_without_a_limit_all_pairs_come_in_the_order_of_their_draws() -> None:
    draws = tuple(Draw(item, None, None, "p") for item in ("b", "a", "c", "a"))
    pairs = choose_pairs(DataPlan(draws, answers=2), None, seed=1)
    assert [(pair.draw.item_id, pair.answer) for pair in pairs] == [(i, n) for i in "bac" for n in (0, 1)]
