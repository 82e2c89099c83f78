from __future__ import annotations

import random

import pytest

from agent.canary import DIFFICULT, FAILED, SLOW, Canary, CanarySettings, Regression, TrialAnswer, Wealth
from benchmarks.canary import Trial, answers, run

SETTINGS = CanarySettings()


def test_who_bets_against_what_is_true_does_not_get_rich() -> None:
    """Ville's inequality, with a look after every answer: 5 % of 2,000 gamblers, and the error of 2,000
    draws."""
    dice, rich = random.Random(1), 0
    for _ in range(2000):
        wealth = Wealth()
        for _ in range(300):
            wealth.bet((dice.random() < 0.3) - (dice.random() < 0.3))
            if wealth.total >= 20:
                rich += 1
                break
    assert rich <= 0.05 * 2000 + 3 * (0.05 * 0.95 * 2000) ** 0.5


@pytest.mark.parametrize("worse", ["", DIFFICULT, FAILED, SLOW, "miss of gcd"])
def test_good_versions_stay_and_worse_ones_go(worse: str) -> None:
    trial = Trial(worse, 0.5, taught=not worse)
    outcomes = [run(trial, number, SETTINGS, to_the_end=False).outcome for number in range(12)]
    assert outcomes.count("promoted") in ((0, 1, 2) if worse else (11, 12))


def test_a_target_that_hardly_anybody_needs_is_not_waited_for() -> None:
    reasons = []
    for every in (3, 50):
        canary = Canary(SETTINGS, ("gcd",))
        for number in range(200):
            told = {DIFFICULT: False, FAILED: False, SLOW: False}
            told |= {"miss of gcd": False} if number // 2 % every == 0 else {}
            canary.note(TrialAnswer("canary" if number % 2 else "champion", told))
        reasons.append(canary.decide()[1])
    assert reasons == ["not shown yet: miss of gcd", "shown to be worse by less than 10%"]


def test_a_target_that_collapses_ends_it_though_the_whole_looks_well() -> None:
    canary = Canary(SETTINGS, ("gcd",))
    dice = random.Random(0)
    for number in range(400):
        arm = "canary" if number % 2 else "champion"
        rate = 0.9 if arm == "canary" else 0.3
        canary.note(TrialAnswer(arm, {"miss of gcd": dice.random() < rate}))
    verdict = canary.verdict()
    assert (verdict.outcome, verdict.reason) == ("roll back", "worse: miss of gcd")
    assert {row.outcome: row.canary[1] for row in verdict.comparisons}["miss of gcd"] == 200


def test_without_data_nothing_is_promoted() -> None:
    canary = Canary(SETTINGS)
    assert canary.verdict().outcome == "wait"
    assert canary.verdict(expired=True).outcome == "roll back"
    for _ in range(2 * SETTINGS.max_answers):
        canary.note(TrialAnswer("canary", {"difficult": False}))  # and none of the champion's
    assert canary.verdict().reason == "not shown in time: difficult, failed, slow"


def test_a_promotion_needs_its_least_number_of_answers() -> None:
    canary = Canary(CanarySettings(margin=0.4, min_answers=200))
    for number in range(398):
        canary.note(
            TrialAnswer(
                "canary" if number % 2 else "champion", dict.fromkeys((DIFFICULT, FAILED, SLOW), False)
            )
        )
    assert canary.verdict().reason == "not shown yet: enough answers"
    for arm in ("champion", "canary"):
        canary.note(TrialAnswer("canary" if arm == "canary" else "champion", {DIFFICULT: False}))
    assert canary.verdict().outcome == "promote"


def test_a_decision_to_roll_back_is_not_taken_back() -> None:
    canary = Canary(SETTINGS)
    for _ in range(60):
        canary.note(TrialAnswer("champion", {FAILED: False}))
        canary.note(TrialAnswer("canary", {FAILED: True}))
    assert canary.decide()[0] == "roll back"
    for _ in range(500):
        canary.note(TrialAnswer("champion", {FAILED: True}))
        canary.note(TrialAnswer("canary", {FAILED: False}))
    assert canary.decide()[0] == "roll back"


def test_the_same_answers_give_the_same_verdict() -> None:
    verdicts = []
    for _ in range(2):
        canary, traffic = Canary(SETTINGS, ("gcd", "powers")), answers(Trial("", 0.3), random.Random(5))
        for _ in range(300):
            canary.note(next(traffic))
        verdicts.append(canary.verdict())
    assert verdicts[0] == verdicts[1]


def test_a_later_regression_is_seen_and_nothing_else() -> None:
    dice = random.Random(3)
    steady = Regression(SETTINGS, reference=0.2)
    assert not any(steady.note(dice.random() < 0.25) for _ in range(20_000))
    delays = []
    for _ in range(30):
        regression, delay = Regression(SETTINGS, reference=0.2), 1
        while not regression.note(dice.random() < 0.45):
            delay += 1
        delays.append(delay)
    assert sorted(delays)[15] < 300
