"""The gate: closed by default, at most 5 % of equal students pass, a lost margin hardly ever, a real gain
mostly."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from pydantic import ValidationError

from training.evaluate import Evaluation, Outcome
from training.gate import GateSettings, GateVerdict, judge

SKILLS = ("add", "div", "mod", "mul", "sub")
TARGETS = ("mod", "mul")


def evaluation(answers: dict[str, list[bool]], items: str = "items-1") -> Evaluation:
    """Single-skill strata from a list of outcomes per stratum name."""
    outcomes = [
        Outcome.model_construct(
            item_id=f"{stratum}-{i}", stratum=stratum, skills=(stratum.split(":")[1],), correct=bool(correct)
        )
        for stratum, flags in answers.items()
        for i, correct in enumerate(flags)
    ]
    return Evaluation.model_construct(items_sha256=items, outcomes=tuple(outcomes))


def flipped(rng: np.random.Generator, before: np.ndarray, gain_rate: float, loss_rate: float) -> np.ndarray:
    """Outcomes after flips at rates per item of the whole set, whatever the champion's accuracy."""
    gains = rng.random(before.size) < gain_rate / max((~before).mean(), 1e-9)
    losses = rng.random(before.size) < loss_rate / max(before.mean(), 1e-9)
    return np.where(before, ~losses, gains)


def students(seed: int, items: int, rates: dict[str, tuple[float, float]]) -> tuple[Evaluation, Evaluation]:
    rng = np.random.default_rng(seed)
    before = {skill: rng.random(items) < 0.6 for skill in SKILLS}
    after = {skill: flipped(rng, flags, *rates.get(skill, (0.02, 0.02))) for skill, flags in before.items()}
    return tuple(evaluation({f"skill:{k}": list(v) for k, v in side.items()}) for side in (before, after))  # type: ignore[return-value]


def share(
    count: int, passes: Callable[[GateVerdict], bool], items: int, rates: dict[str, tuple[float, float]]
) -> float:
    return sum(passes(judge(*students(seed, items, rates), TARGETS)) for seed in range(count)) / count


def promoted(verdict: GateVerdict) -> bool:
    return verdict.promote


def mcnemar_passed(verdict: GateVerdict) -> bool:
    return verdict.table[0].passed is True


def row_passed(name: str) -> Callable[[GateVerdict], bool]:
    return lambda verdict: next(row for row in verdict.table if row.name == name).passed is True


def test_equal_students_are_promoted_in_at_most_five_per_cent() -> None:
    assert share(1000, mcnemar_passed, 60, {skill: (0.05, 0.05) for skill in SKILLS}) <= 0.05
    assert share(200, promoted, 150, {}) <= 0.05


def test_a_regression_of_the_margin_passes_in_at_most_one_per_cent() -> None:
    gain, losses = dict.fromkeys(TARGETS, (0.3, 0.02)), ((0.0, 0.1), (0.05, 0.15), (0.02, 0.2))
    verdicts = [
        judge(*students(seed, 100, gain | {"div": losses[seed % 3]}), TARGETS) for seed in range(1000)
    ]
    assert sum(map(row_passed("div"), verdicts)) <= 10
    assert sum(map(promoted, verdicts)) <= 10


def test_a_real_gain_is_promoted() -> None:
    assert share(200, promoted, 150, dict.fromkeys(TARGETS, (0.15, 0.03))) >= 0.9


def test_a_target_that_loses_is_not_hidden_by_the_other() -> None:
    champion, challenger = students(0, 300, {"mul": (0.38, 0.0), "mod": (0.0, 0.2)})
    verdict = judge(champion, challenger, TARGETS)
    assert not verdict.promote
    assert verdict.table[0].passed is True
    assert [reason.split(":")[0] for reason in verdict.reasons] == ["target mod"]


def base(items: int = 100, right: int = 60) -> dict[str, list[bool]]:
    return {f"skill:{skill}": [i < right for i in range(items)] for skill in SKILLS}


def better(items: int = 100, right: int = 60) -> dict[str, list[bool]]:
    return base(items, right) | {f"skill:{skill}": [True] * items for skill in TARGETS}


def test_a_clean_gain_is_promoted_with_its_table() -> None:
    verdict = judge(evaluation(base()), evaluation(better()), TARGETS)
    assert verdict.promote
    assert verdict.reasons == (
        "target skills 60.0% -> 100.0% on 200 items (McNemar p = 8.3e-25); no skill lost 10%",
    )
    row = verdict.table[1]
    assert (row.name, row.kind, row.items, row.champion, row.challenger, row.gained, row.lost) == (
        "add",
        "skill",
        100,
        0.6,
        0.6,
        0,
        0,
    )
    assert -0.1 < row.lower_bound < 0
    assert GateVerdict.model_validate_json(verdict.model_dump_json()) == verdict


@pytest.mark.parametrize(
    ("champion", "challenger", "targets", "reason"),
    [
        (None, evaluation(better()), TARGETS, "no evaluation of the champion"),
        (evaluation(base()), None, TARGETS, "no evaluation of the challenger"),
        (evaluation(base()), evaluation(better(), "items-2"), TARGETS, "evaluate both on one item set"),
        (evaluation(base()), evaluation(better(99)), TARGETS, "list different items"),
        (evaluation(base()), evaluation(better()), (), "names no target skill"),
        (evaluation(base()), evaluation(better()), ("gcd",), r"\['gcd'\] have fewer than 50"),
        (evaluation(base(40)), evaluation(better(40)), TARGETS, "fewer than 50"),
        (
            evaluation(base() | {"skill:gcd": [True] * 49}),
            evaluation(better() | {"skill:gcd": [True] * 49}),
            TARGETS,
            "only 49 held-out",
        ),
        (evaluation({}), evaluation({}), TARGETS, "fewer than 50"),
        (evaluation(base()), evaluation(base()), TARGETS, "no proven gain"),
        (
            evaluation(base() | {"mix:original": [True] * 100}),
            evaluation(better() | {"mix:original": [i % 5 > 0 for i in range(100)]}),
            TARGETS,
            "stratum mix:original: a loss of 10% is not ruled out",
        ),
    ],
)
def test_whatever_is_missing_closes_the_gate(
    champion: Evaluation | None, challenger: Evaluation | None, targets: tuple[str, ...], reason: str
) -> None:
    verdict = judge(champion, challenger, targets)
    assert not verdict.promote
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(" ".join(verdict.reasons))


def test_values_that_are_no_outcomes_close_the_gate() -> None:
    odd = evaluation(better())
    outcome = odd.outcomes[0].model_copy(update={"item_id": ["unhashable"]})
    verdict = judge(
        evaluation(base()), odd.model_copy(update={"outcomes": (outcome, *odd.outcomes[1:])}), TARGETS
    )
    assert not verdict.promote and "could not be compared" in verdict.reasons[0]


def test_nan_settings_cannot_be_made() -> None:
    for field in ("margin", "alpha", "regression_alpha"):
        with pytest.raises(ValidationError):
            GateSettings(**{field: float("nan")})


def test_out_of_distribution_is_shown_but_not_tested() -> None:
    ood_before, ood_after = {"ood:pairs": [True] * 100}, {"ood:pairs": [False] * 100}
    verdict = judge(evaluation(base() | ood_before), evaluation(better() | ood_after), TARGETS)
    assert verdict.promote
    assert [(row.kind, row.passed) for row in verdict.table if row.name == "ood:pairs"] == [
        ("reported", None)
    ]
    assert not judge(
        evaluation(base() | ood_before),
        evaluation(better() | ood_after),
        TARGETS,
        GateSettings(reported_only=()),
    ).promote


def test_small_skills_can_be_pooled_but_not_hidden() -> None:
    small = {f"skill:rare{i}": [True] * 20 for i in range(5)}
    settings = GateSettings(small_skills="pool")
    assert judge(evaluation(base() | small), evaluation(better() | small), TARGETS, settings).promote
    broken = small | {"skill:rare0": [False] * 20}
    verdict = judge(evaluation(base() | small), evaluation(better() | broken), TARGETS, settings)
    assert not verdict.promote and "(small skills)" in verdict.reasons[0]
    assert not judge(evaluation(base() | small), evaluation(better() | small), ("rare0",), settings).promote
