"""The demo's world: its splits, pools, held-out sets and determinism."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loop.tasks.world.questions import parse
from loop.tasks.world.skills import BY_NAME
from loop.tasks.world.world import (
    COMMON,
    DESCRIPTIONS,
    MIDDLING,
    ORIGINAL,
    RARE,
    SKILLS,
    STUBBORN,
    UNSEEN_PAIRS,
    HeldOutSizes,
    Mixture,
    Split,
    check,
    draw,
    held_out,
    mixture_items,
    needed_skills,
    pool,
    single,
    split_of,
)

SPLITS: tuple[Split, ...] = ("gate", "exam", "traffic", "pool")


def test_skills_are_named_once_and_described() -> None:
    assert len(SKILLS) == len(set(SKILLS)) >= 13
    assert set(SKILLS) == {*COMMON, *MIDDLING, *RARE} == set(DESCRIPTIONS)
    assert len(COMMON) == 7 and len(RARE) >= 6 and STUBBORN in COMMON


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32), split=st.sampled_from(SPLITS))
def test_a_drawn_problem_is_understood_and_its_solution_is_right(seed: int, split: Split) -> None:
    problem = draw(Random(seed), Mixture(dict.fromkeys(SKILLS, 1.0), chain_share=0.5), split)
    assert needed_skills(problem.question) == problem.skills
    found = check(problem.question, problem.solution)
    assert (found.verdict, found.answer) == ("correct", problem.answer)
    links = parse(problem.question)
    assert links is not None and {split_of(link.skill, link.args) for link in links} == {split}


@pytest.mark.parametrize("skill", SKILLS)
def test_every_form_of_every_skill_is_asked_and_understood(skill: str) -> None:
    problems = [single(Random(seed), skill, "pool") for seed in range(60)]
    assert {problem.form for problem in problems} == {str(form) for form in range(len(BY_NAME[skill].forms))}
    assert all(needed_skills(problem.question) == (skill,) for problem in problems)


SIZES = HeldOutSizes(steady=20, wavering=20, stubborn=20, mix=60, ood=40)


def test_splits_have_the_sizes_promised() -> None:
    counts = Counter(split_of("add", (a, b)) for a in range(100, 200) for b in range(a, 200))
    shares = {name: counts[name] / counts.total() for name in SPLITS}
    assert shares == pytest.approx({"gate": 0.1, "exam": 0.1, "traffic": 0.4, "pool": 0.4}, abs=0.03)


def test_commuted_operands_share_a_split() -> None:
    assert all(split_of("add", (a, 57)) == split_of("add", (57, a)) for a in range(100))


def test_held_out_sets_are_fixed_disjoint_and_stratified() -> None:
    gate, exam = held_out("gate", SIZES), held_out("exam", SIZES)
    held_out.cache_clear()
    assert held_out("gate", SIZES) == gate
    assert not {item.question for item in gate} & {item.question for item in exam}
    assert len({item.item_id for item in (*gate, *exam)}) == len(gate) + len(exam)
    assert Counter(item.stratum for item in exam) == {
        **{f"skill:{name}": 20 for name in SKILLS},
        "mix:original": 60,
        "ood": 40,
    }
    assert all(
        item.skills == (item.stratum.removeprefix("skill:"),)
        for item in exam
        if item.stratum.startswith("skill:")
    )
    assert all(needed_skills(item.question) == item.skills for item in exam)
    assert {item.stratum for item in mixture_items("exam", "shift", ORIGINAL, 5)} == {"mix:shift"}


def test_out_of_distribution_items_are_never_drawn_for_training() -> None:
    ood = [item for item in held_out("exam") if item.stratum == "ood"]
    pairs, orders = (
        [item for item in ood if len(item.skills) == 2],
        [item for item in ood if len(item.skills) == 1],
    )
    assert len(pairs) == len(orders) and {item.skills for item in pairs} <= UNSEEN_PAIRS
    assert all(link.form == -1 for item in orders for link in parse(item.question) or ())
    rng = Random(1)
    seen = [draw(rng, Mixture(dict.fromkeys(COMMON, 1.0), chain_share=1.0), "pool") for _ in range(500)]
    assert (
        not {pair for problem in seen for pair in zip(problem.skills, problem.skills[1:], strict=False)}
        & UNSEEN_PAIRS
    )
    assert not any("-1" in problem.form for problem in seen)


def test_a_pool_has_distinct_items_and_grows_by_appending() -> None:
    small, large = pool(3, {"left": 20}), pool(3, {"left": 60})
    assert (
        large[:20] == small
        and len({item.question for item in large}) == len({item.item_id for item in large}) == 60
    )
    assert pool(4, {"left": 20}) != small
    both = pool(3, {"left": 20, "average": 30})
    assert both[:20] == small and sum("average" in item.skills for item in both) >= 30
    assert all(
        split_of(link.skill, link.args) == "pool" for item in both for link in parse(item.question) or ()
    )


def test_a_shifted_mixture_keeps_the_other_proportions() -> None:
    shifted = ORIGINAL.shifted({"left": 0.4})
    assert sum(shifted.weights.values()) == pytest.approx(1.0)
    assert shifted.weights["add"] / shifted.weights["bill"] == pytest.approx(
        ORIGINAL.weights["add"] / ORIGINAL.weights["bill"]
    )
