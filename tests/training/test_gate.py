"""The gate: closed by default; opens for a harmless gain on a long catalog, closes on a loss wherever it is.

The operating characteristics are those of a few small cells of benchmarks/gate.py; decision 0027 has the
whole table.
"""

from __future__ import annotations

import json
from itertools import combinations

import numpy as np
import pytest
from pydantic import ValidationError

from benchmarks.gate_rounds import Cell, Tally, run
from training.evaluate import Correct, Evaluation, Outcome
from training.gate import GateSettings, GateVerdict, Row, judge

SKILLS = ("add", "div", "mod", "mul", "sub")
TARGETS = ("mod", "mul")
Answers = dict[str, list[Correct]]


def evaluation(answers: Answers, items: str = "items-1") -> Evaluation:
    """One stratum per key, "skill:add" or "mix:one" with the skill after the colon, from a list of
    outcomes.
    """
    outcomes = [
        Outcome.model_construct(
            item_id=f"{stratum}-{i}", stratum=stratum, skills=(stratum.split(":")[1],), correct=correct
        )
        for stratum, outcomes in answers.items()
        for i, correct in enumerate(outcomes)
    ]
    return Evaluation.model_construct(items_sha256=items, outcomes=tuple(outcomes))


def right(share: float, items: int = 100, lost: int = 0, gained: int = 0) -> list[Correct]:
    """The first `share` of the items right, but for the first `lost`, and `gained` more."""
    return [lost <= i < share * items + gained for i in range(items)]


def base(items: int = 100, right_items: float = 0.6) -> Answers:
    return {f"skill:{skill}": right(right_items, items) for skill in SKILLS}


def better(items: int = 100) -> Answers:
    return base(items) | {f"skill:{skill}": right(1.0, items) for skill in TARGETS}


def rows_of(verdict: GateVerdict, name: str) -> list[Row]:
    return [row for row in verdict.table if row.name == name]


def tally(
    scenario: str, variant: str = "single", skills: int = 112, items: int = 1_000, cases: int = 40
) -> Tally:
    *_, result = run(Cell(scenario, variant, skills, items, "5-15 %"), cases, seed=1)
    assert result is not None
    return result


@pytest.mark.parametrize(("variant", "skills"), [("single", 112), ("chains", 112), ("sampled", 13)])
def test_a_harmless_gain_opens_a_long_catalog(variant: str, skills: int) -> None:
    assert tally("good", variant, skills).opened >= 34


@pytest.mark.parametrize(("variant", "skills"), [("single", 112), ("sampled", 13)])
def test_equal_students_are_not_promoted(variant: str, skills: int) -> None:
    assert tally("equal", variant, skills).opened <= 6


@pytest.mark.parametrize(("variant", "skills"), [("single", 112), ("chains", 112), ("sampled", 13)])
def test_a_large_loss_of_one_skill_is_caught(variant: str, skills: int) -> None:
    found = tally("20 on one", variant, skills)
    assert found.lost >= 0.9 * found.cases > 0


def test_harmless_rounds_in_a_row_do_not_close_the_gate() -> None:
    assert tally("good, later").opened >= 34


def test_small_losses_do_not_add_up() -> None:
    stopped = tally("creeping", skills=13, items=2_000, cases=10)
    assert stopped.lost >= 8
    protected = tally("creeping, protected", skills=13, items=2_000, cases=10)
    assert protected.lost == 10 and protected.within >= 9


def test_a_target_that_loses_is_not_hidden_by_the_other() -> None:
    challenger = base(300) | {"skill:mul": right(1.0, 300), "skill:mod": right(0.6, 300, lost=60)}
    verdict = judge(evaluation(base(300)), evaluation(challenger), TARGETS)
    assert verdict.table[0].kind == "targets" and verdict.table[0].passed is True
    assert [reason.split(":")[0] for reason in verdict.reasons] == ["target mod"]


def test_a_clean_gain_is_promoted_with_its_table() -> None:
    verdict = judge(evaluation(base()), evaluation(better()), TARGETS)
    assert verdict.promote
    assert verdict.reasons == (
        "target skills 60.0% -> 100.0% on 200 items (McNemar p = 8.3e-25); the whole 60.0% -> 76.0%; "
        "no harm found in 5 skills",
    )
    [row] = rows_of(verdict, "add")
    assert (row.kind, row.items, row.champion, row.challenger, row.gained, row.lost) == (
        "skill",
        100,
        0.6,
        0.6,
        0,
        0,
    )
    assert (row.passed, row.harm, row.against) == (True, 1.0, "champion") and -0.1 < row.lower_bound < 0
    assert [row.kind for row in verdict.table] == [
        "targets",
        "whole",
        "rest",
        "skill",
        "skill",
        "target",
        "target",
        "skill",
    ]
    assert GateVerdict.model_validate_json(verdict.model_dump_json()) == verdict


def test_verdicts_stored_by_earlier_releases_are_read() -> None:
    row = {
        "name": "add", "kind": "skill", "items": 100, "champion": 0.6, "challenger": 0.6, "gained": 0,
        "lost": 0, "p_value": 0.001, "lower_bound": -0.05, "passed": True,
    }  # fmt: skip
    stored = json.dumps({"promote": True, "reasons": ["target skills gained"], "table": [row]})
    assert GateVerdict.model_validate_json(stored).table[0].against == "champion"


@pytest.mark.parametrize(
    ("champion", "challenger", "targets", "reason"),
    [
        (None, evaluation(better()), TARGETS, "no evaluation of the champion"),
        (evaluation(base()), None, TARGETS, "no evaluation of the challenger"),
        (evaluation(base()), evaluation(better(), "items-2"), TARGETS, "evaluate both on one item set"),
        (evaluation(base()), evaluation(better(99)), TARGETS, "list different items"),
        (evaluation(base()), evaluation(better()), (), "names no target skill"),
        (evaluation(base()), evaluation(better()), ("gcd",), r"\['gcd'\] have fewer than 20"),
        (evaluation(base(19)), evaluation(better(19)), TARGETS, "fewer than 20"),
        (evaluation({}), evaluation({}), TARGETS, "fewer than 20"),
        (evaluation(base()), evaluation(base()), TARGETS, "no proven gain"),
        (
            evaluation(base() | {"mix:one": right(1.0, 20)}),
            evaluation(better() | {"mix:one": right(1.0, 20)}),
            TARGETS,
            "stratum mix:one: a loss of 10% is not ruled out .* on 20 items",
        ),
        (
            evaluation(base() | {"skill:gcd": right(1.0, 60)}),
            evaluation(better() | {"skill:gcd": right(1.0, 60, lost=12)}),
            TARGETS,
            r"skill gcd: it lost \(100.0% -> 80.0% on 60 items, 0 gained, 12 lost; p = .* looks counted\)",
        ),
    ],
)
def test_whatever_is_missing_or_lost_closes_the_gate(
    champion: Evaluation | None, challenger: Evaluation | None, targets: tuple[str, ...], reason: str
) -> None:
    verdict = judge(champion, challenger, targets)
    assert not verdict.promote
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(" ".join(verdict.reasons))


def test_values_that_are_no_outcomes_close_the_gate() -> None:
    answers = evaluation(better())
    outcome = answers.outcomes[0].model_copy(update={"item_id": ["unhashable"]})
    odd = Evaluation.model_construct(items_sha256="items-1", outcomes=(outcome, *answers.outcomes[1:]))
    verdict = judge(evaluation(base()), odd, TARGETS)
    assert not verdict.promote and "could not be compared" in verdict.reasons[0]


def test_nan_settings_cannot_be_made() -> None:
    for field in ("margin", "whole_margin", "alpha", "regression_alpha", "harm_rate", "max_undecided"):
        with pytest.raises(ValidationError):
            GateSettings(**{field: float("nan")})


def test_out_of_distribution_is_shown_but_not_tested() -> None:
    ood_before, ood_after = {"ood:pairs": right(1.0)}, {"ood:pairs": right(0.0)}
    champion, challenger = evaluation(base() | ood_before), evaluation(better() | ood_after)
    verdict = judge(champion, challenger, TARGETS)
    assert verdict.promote
    assert [(row.kind, row.passed) for row in rows_of(verdict, "ood:pairs")] == [("reported", None)]
    assert not rows_of(verdict, "pairs")
    assert not judge(champion, challenger, TARGETS, GateSettings(reported_only=())).promote


def test_a_protected_skill_must_be_shown_not_worse() -> None:
    champion, challenger = evaluation(base(40)), evaluation(better(40))
    assert judge(champion, challenger, TARGETS).promote
    verdict = judge(champion, challenger, TARGETS, GateSettings(protected=("add",)))
    assert [reason.split(" (")[0] for reason in verdict.reasons] == [
        "protected add: a loss of 10% is not ruled out"
    ]
    absent = judge(champion, challenger, TARGETS, GateSettings(protected=("gcd",)))
    assert absent.reasons == ("protected skill gcd has no held-out item; nothing can be shown about it",)


def test_undecided_answers_are_not_wrong_ones() -> None:
    """Ten of 500 may be undecided; they count for neither side. One more closes the gate."""
    undecided: list[Correct] = [None] * 10
    verdict = judge(
        evaluation(base()), evaluation(better() | {"skill:sub": undecided + right(0.6)[10:]}), TARGETS
    )
    assert verdict.promote
    assert [(row.items, row.champion, row.lost) for row in rows_of(verdict, "sub")] == [
        (90, pytest.approx(50 / 90), 0)
    ]
    closed = judge(
        evaluation(base()),
        evaluation(better() | {"skill:sub": [None, *undecided, *right(0.6)[11:]]}),
        TARGETS,
    )
    assert closed.reasons == (
        "the grader could not decide 2.2% of the challenger's answers to 500 items; at most 2.0% may be",
    )


def wavering(items: int) -> Answers:
    """Skills beside the targets on which a challenger loses and gains 8 % of the items."""
    return {
        f"skill:{skill}": right(0.6, items, lost=items * 8 // 100, gained=items * 8 // 100)
        for skill in ("add", "div")
    }


def test_the_whole_is_weighed_by_traffic() -> None:
    """`sub` is a fifth of the items; with nearly all of the traffic, its flips leave a loss of 5 points
    possible.
    """
    champion = evaluation(base())
    challenger = evaluation(better() | wavering(100) | {"skill:sub": right(0.6, lost=9, gained=8)})
    assert judge(champion, challenger, TARGETS).promote
    verdict = judge(champion, challenger, TARGETS, weights={"sub": 0.98, "add": 0.02})
    assert [reason.split(" (")[0] for reason in verdict.reasons] == ["whole: a loss of 5% is not ruled out"]
    for weights in ({"sub": float("nan")}, {"sub": -1.0}, {}, {"gcd": 1.0}):
        assert "traffic's shares" in judge(champion, challenger, TARGETS, weights=weights).reasons[0]


def test_the_challenger_is_held_against_the_best_each_skill_has_been() -> None:
    """`sub` lost 4 points in each of two rounds, too few to be told from flips in one of them."""
    best, champion = (
        evaluation(base(200)),
        evaluation(base(200) | {"skill:sub": right(0.6, 200, lost=16, gained=8)}),
    )
    challenger = evaluation(better(200) | wavering(200) | {"skill:sub": right(0.6, 200, lost=32, gained=16)})
    assert judge(champion, challenger, TARGETS).promote
    verdict = judge(champion, challenger, TARGETS, history=[best])
    assert [reason.split(" (")[0] for reason in verdict.reasons] == [
        "skill sub: it lost since earlier champion 1 of 1"
    ]
    assert rows_of(verdict, "sub")[-1].against == "earlier champion 1 of 1"
    other = evaluation(base(200), "items-2")
    assert "evaluate both on one item set" in judge(champion, challenger, TARGETS, history=[other]).reasons[0]


def test_items_may_come_in_any_order() -> None:
    champion, challenger = evaluation(base()), evaluation(better())
    turned = Evaluation.model_construct(items_sha256="items-1", outcomes=challenger.outcomes[::-1])
    assert judge(champion, turned, TARGETS) == judge(champion, challenger, TARGETS)


def test_sampled_answers_are_compared_by_their_shares() -> None:
    rng = np.random.default_rng(0)
    before = {name: [float(rng.binomial(4, 0.5)) / 4 for _ in range(100)] for name in base()}
    after = before | {
        f"skill:{skill}": [min(1.0, share + 0.25) for share in before[f"skill:{skill}"]] for skill in TARGETS
    }
    verdict = judge(evaluation(before), evaluation(after), TARGETS)  # type: ignore[arg-type]
    assert verdict.promote and verdict.table[0].challenger - verdict.table[0].champion == pytest.approx(
        0.23, abs=0.03
    )


def wavering_by_an_eighth(items: int) -> tuple[list[Correct], list[Correct]]:
    """Eight answers each to questions of which half are right: one more or less of the eight."""
    return [0.5] * items, [0.5 + (0.125 if i % 2 else -0.125) for i in range(items)]


def test_a_skill_that_flips_as_a_whole_is_no_harm_because_others_waver() -> None:
    """Nine questions lost and three gained of 60 (McNemar p = .07): no harm by itself, nor among skills of
    which one answer in eight differs."""
    before, after = wavering_by_an_eighth(60)
    names = [f"skill:s{number}" for number in range(12)]
    flips: Answers = {"skill:flips": right(0.6, 60)}
    flipped: Answers = {"skill:flips": right(0.6, 60, lost=9, gained=3)}
    gained: Answers = {"skill:mod": [1.0] * 60}
    champion = evaluation(dict.fromkeys(names, before) | flips | {"skill:mod": before})
    challenger = evaluation(dict.fromkeys(names, after) | flipped | gained)
    (row,) = rows_of(judge(champion, challenger, ("mod",)), "flips")
    assert row.harm is not None and row.harm > 0.05 and row.passed


def test_a_protected_skill_is_shown_by_sampled_answers_that_hardly_waver() -> None:
    """60 questions whose shares of eight move by an eighth: the mean is known to 1.6 points."""
    before, after = wavering_by_an_eighth(60)
    champion = evaluation(base() | {"skill:add": before})
    challenger = evaluation(better() | {"skill:add": after})
    verdict = judge(champion, challenger, TARGETS, GateSettings(protected=("add",)))
    assert verdict.promote, verdict.reasons


def test_answers_that_cannot_be_graded_close_the_gate_beside_others_that_can() -> None:
    """Of eight answers to each question seven cannot be graded, and one is right."""
    champion, challenger = evaluation(base()), evaluation(better())
    torn = tuple(outcome.model_copy(update={"undecided": 7 / 8}) for outcome in challenger.outcomes)
    verdict = judge(champion, challenger.model_copy(update={"outcomes": torn}), TARGETS)
    assert verdict.reasons == (
        "the grader could not decide 87.5% of the challenger's answers to 500 items; at most 2.0% may be",
    )


PAIRS = tuple(combinations(SKILLS, 2))


def combined(lost: dict[tuple[str, ...], int], gained: int = 0, items: int = 60) -> Evaluation:
    """One stratum of 100 items for each skill alone and `items` for each pair, 80 % right, but for so many
    that are lost, and `gained` more of `mod` alone."""
    outcomes = [
        Outcome.model_construct(
            item_id=f"{'+'.join(skills)}-{i}", stratum="traffic", skills=skills, correct=correct
        )
        for skills in (*((skill,) for skill in SKILLS), *PAIRS)
        for i, correct in enumerate(
            right(0.8, 100 if len(skills) == 1 else items, lost.get(skills, 0), gained * (skills == ("mod",)))
        )
    ]
    return Evaluation.model_construct(items_sha256="combined", outcomes=tuple(outcomes))


def test_harm_to_one_pair_of_skills_closes_the_gate_and_is_named() -> None:
    verdict = judge(combined({}), combined({("add", "mul"): 25}, gained=20), ("mod",))
    assert not verdict.promote and any("pair add + mul: it lost" in reason for reason in verdict.reasons)
    assert [row.passed for row in rows_of(verdict, "div + sub")] == [True]


def test_a_loss_spread_over_everything_that_needs_several_skills_is_seen() -> None:
    verdict = judge(combined({}), combined(dict.fromkeys(PAIRS, 2), gained=20), ("mod",))
    assert any(reason.startswith("what needs several skills: it lost") for reason in verdict.reasons)
    assert not any("pair " in reason for reason in verdict.reasons)


def test_a_pair_that_was_lost_since_an_earlier_champion_is_not_forgotten() -> None:
    half, whole = combined({("add", "mul"): 25}), combined({("add", "mul"): 25}, gained=20)
    verdict = judge(half, whole, ("mod",), history=(combined({}),))
    assert any("pair add + mul: it lost since earlier champion 1 of 1" in text for text in verdict.reasons)
    assert judge(half, whole, ("mod",)).promote


def test_a_pair_with_few_items_is_not_looked_at() -> None:
    verdict = judge(combined({}, items=19), combined({}, gained=20, items=19), ("mod",))
    assert verdict.promote and "no harm found in 5 skills" in verdict.reasons[0]
    more = judge(combined({}), combined({}, gained=20), ("mod",))
    assert more.promote and "no harm found in 5 skills and 10 pairs" in more.reasons[0]


def test_pairs_that_waver_more_than_single_skills_raise_no_false_alarms() -> None:
    def drawn(rng: np.random.Generator, right: list[bool], flips: float) -> list[bool]:
        return [bool(known ^ (rng.random() < flips)) for known in right]

    def outcomes(answers: dict[tuple[str, ...], list[bool]]) -> Evaluation:
        rows = [
            Outcome.model_construct(item_id=f"{skills}-{i}", stratum="t", skills=skills, correct=correct)
            for skills, corrects in answers.items()
            for i, correct in enumerate(corrects)
        ]
        return Evaluation.model_construct(items_sha256="t", outcomes=tuple(rows))

    alarms = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        groups = (*((f"s{n:02d}",) for n in range(20)), *((f"s{n:02d}", f"s{n + 1:02d}") for n in range(8)))
        before = {skills: (rng.random(100) < 0.5).tolist() for skills in groups}
        after = {
            skills: drawn(rng, right, 0.02 if len(skills) == 1 else 0.5) for skills, right in before.items()
        }
        verdict = judge(outcomes(before), outcomes(after), ("s19",))
        alarms += any(row.kind == "pair" and row.passed is False for row in verdict.table)
    assert alarms <= 4
