"""Drift: false alarms as calibrated without a known baseline; alarms that clear and come again."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.drift import (
    ABSTENTIONS,
    Alarm,
    DriftSettings,
    DriftWatch,
    sidak,
    threshold,
)
from agent.posterior import ProfileView
from agent.profile import UNDECIDED, UNEXPLAINED, Counts, Observation, fold
from agent.scanner import Scanner, rows_of, scan_version

SETTINGS = DriftSettings()


def watched(
    phases: list[tuple[int, float]], seed: int, size: int = 10, settings: DriftSettings = SETTINGS
) -> DriftWatch:
    """A series of buckets of `size` answers; each phase is (answers, miss rate)."""
    rng, watch, buckets = np.random.default_rng(seed), DriftWatch("s", settings, tests=1), itertools.count()
    for answers, rate in phases:
        for missing in rng.binomial(size, rate, answers // size):
            watch.add(next(buckets), {"s": Counts(size, int(missing))})
    return watch


@pytest.mark.parametrize("rate", [0.2, 0.3, 0.5])
def test_false_alarms_are_as_calibrated_whatever_the_miss_rate(rate: float) -> None:
    settings = DriftSettings(false_alarm=0.1)
    raised = [bool(watched([(1_000, rate)], seed, settings=settings).alarms) for seed in range(300)]
    assert 0.02 <= sum(raised) / 300 <= 0.16


def test_a_student_that_always_missed_as_much_raises_nothing() -> None:
    """A steady 30 % raised an alarm for 20 of 20 skills."""
    rng, skills = random.Random(0), [f"skill{n}" for n in range(20)]
    stream = [
        Observation("s", 1, bucket, (skill,), (skill,) if rng.random() < 0.3 else ())
        for bucket in range(80)
        for skill in skills
        for _ in range(5)
    ]
    assert scan_version(ProfileView(fold(stream)), "s", 1, 99, catalog=20) == ()


def test_delays_are_sane_with_a_baseline_that_was_only_seen() -> None:
    for rate, most in ((0.4, 120), (0.3, 450)):
        watches = [watched([(1_000, 0.2), (1_000, rate)], seed) for seed in range(60)]
        delays = [10 * watch.alarms[0].bucket - 990 for watch in watches if watch.alarms]
        assert len(delays) >= 50 and np.median(delays) <= most


def test_a_short_reference_is_not_taken_for_the_truth() -> None:
    """50 answers that happened to be good are no baseline: false alarms stay rare after them."""
    raised = [bool(watched([(50, 0.12), (1_000, 0.2)], seed).alarms) for seed in range(200)]
    assert sum(raised) <= 20


def test_nothing_is_said_before_the_reference_is_there() -> None:
    watch = watched([(40, 0.0), (200, 1.0)], seed=0)
    (alarm,) = watch.alarms
    assert alarm.before.needed >= SETTINGS.reference


def test_an_alarm_dates_the_change_clears_and_comes_again() -> None:
    once = watched([(500, 0.2), (1_500, 0.6)], seed=1)
    assert len(once.alarms) == 1 and once.active is not None and 48 <= once.alarms[0].started <= 52
    again = watched([(500, 0.2), (300, 0.6), (400, 0.2), (300, 0.6)], seed=1)
    first, second = again.alarms
    assert first.cleared is not None and 80 < first.cleared <= 100
    assert second.cleared is None and 118 <= second.started <= 122 and again.active == second


def test_an_alarm_does_not_flap() -> None:
    stays = [watched([(500, 0.2), (1_500, 0.4)], seed) for seed in range(60)]
    assert sum(len(w.alarms) == 1 and w.active is not None for w in stays) >= 57


def test_the_threshold_of_an_alarm_is_the_one_that_it_passed() -> None:
    (alarm,) = watched([(500, 0.2), (300, 0.6)], seed=1).alarms
    assert alarm.statistic > alarm.threshold == threshold(SETTINGS, tests=1)


def test_a_low_or_slightly_higher_miss_rate_is_no_drift() -> None:
    assert not watched([(2_000, 0.005), (4_000, 0.06)], seed=0).alarms
    assert not watched([(40_000, 0.30), (40_000, 0.33)], seed=0, size=100).alarms


def bursts(seed: int, skills: tuple[str, ...], bad: str) -> list[Observation]:
    rng = random.Random(seed)
    return [
        Observation(
            "s", 1, b, (skill,), (skill,) if rng.random() < (0.7 if skill == bad and b > 60 else 0.2) else ()
        )
        for b in range(100)
        for skill in skills
        for _ in range(8)
    ]


def miss_alarms(stream: list[Observation], as_of: int = 200, catalog: int = 20) -> list[Alarm]:
    alarms = scan_version(ProfileView(fold(stream)), "s", 1, as_of, catalog)
    return [alarm for alarm in alarms if alarm.kind == "miss rate"]


def test_skills_that_arrive_move_no_alarm_of_another() -> None:
    """A new harmless skill moved the alarm's bucket and sent a second alert."""
    stream = bursts(0, ("add", "gcd"), bad="gcd")
    alone = miss_alarms(stream)
    more = miss_alarms(
        [*stream, *(Observation("s", 1, b, ("max",)) for b in range(50, 120) for _ in range(9))]
    )
    assert [alarm.skill for alarm in alone] == ["gcd"] and alone == more


def test_only_closed_buckets_count() -> None:
    stream = bursts(0, ("gcd",), bad="gcd")
    (alarm,) = miss_alarms(stream)
    assert miss_alarms(stream, as_of=alarm.bucket + 1) == []
    assert miss_alarms(stream, as_of=alarm.bucket + 2)[0].bucket == alarm.bucket


@given(seed=st.integers(0, 50), cuts=st.sets(st.integers(1, 130), max_size=6), late=st.booleans())
def test_a_scanner_that_is_fed_in_parts_says_what_one_look_says(
    seed: int, cuts: set[int], late: bool
) -> None:
    stream = bursts(seed % 3, ("add", "gcd"), bad="gcd")
    table = fold(stream)
    rows = list(rows_of(table))
    random.Random(seed).shuffle(rows)
    scanner, times = Scanner(20), [*sorted(cuts), 200]
    shift = 5 if late else 0
    for start, end in itertools.pairwise([0, *times]):
        known = [row for row in rows if row[1] + shift < end]
        scanner.put(row for row in known if row[1] + shift >= start)
        scanner.advance(end, history=partial(iter, known))
    assert scanner.alarms == scan_version(ProfileView(table), "s", 1, 200, catalog=20)


def of_versions(phases: list[tuple[int, float]], seed: int, version: int) -> tuple[Alarm, ...]:
    """Alarms of a version on one skill; each phase is (version, miss rate) of 300 answers in 30 buckets."""
    rng = random.Random(seed)
    stream = [
        Observation("s", of, 30 * phase + b, ("gcd",), ("gcd",) if rng.random() < rate else ())
        for phase, (of, rate) in enumerate(phases)
        for b in range(30)
        for _ in range(10)
    ]
    return scan_version(ProfileView(fold(stream)), "s", version, 1_000, 100)


def test_a_drift_at_or_just_before_a_promotion_is_an_alarm_of_the_new_version() -> None:
    (alarm,) = of_versions([(1, 0.1), (2, 0.5)], 0, version=2)
    assert alarm.started == 30 and not alarm.inherited and alarm.before.needed == 300


def test_a_drift_during_which_two_versions_are_promoted_is_held_against_the_first() -> None:
    (alarm,) = of_versions([(1, 0.1), (2, 0.1), (3, 0.5)], 0, version=3)
    assert alarm.before.needed > 500 and alarm.started == 60


def test_what_a_promotion_mends_is_no_alarm_and_the_new_level_is_the_reference() -> None:
    assert of_versions([(1, 0.6), (2, 0.1)], 0, version=2) == ()
    (alarm,) = of_versions([(1, 0.6), (2, 0.1), (2, 0.4)], 0, version=2)
    assert 55 <= alarm.started <= 65 and alarm.before.missing < 0.15 * alarm.before.needed


def test_an_alarm_stands_over_a_promotion_until_the_new_version_shows_a_fall() -> None:
    (stands,) = of_versions([(1, 0.1), (1, 0.5), (2, 0.5)], 0, version=2)
    assert stands.inherited and stands.cleared is None and 28 <= stands.started <= 33
    (mended,) = of_versions([(1, 0.1), (1, 0.5), (2, 0.1)], 0, version=2)
    assert mended.inherited and mended.cleared is not None and mended.cleared > 60


def test_equal_versions_raise_nothing() -> None:
    raised = [of_versions([(1, 0.2), (2, 0.2), (2, 0.2)], seed, version=2) for seed in range(100)]
    assert sum(map(bool, raised)) <= 2


def test_a_grader_that_falls_silent_is_an_alarm() -> None:
    rng = random.Random(4)
    stream = [
        Observation("s", 1, b, ("add",), judged=rng.random() > (0.5 if b > 60 else 0.05))
        for b in range(100)
        for _ in range(8)
    ]
    alarms = scan_version(ProfileView(fold(stream)), "s", 1, 200, catalog=20)
    assert [(a.kind, a.skill) for a in alarms if a.kind == "abstention"] == [("abstention", UNDECIDED)]
    wrong = [
        Observation(
            "s", 1, b, ("add",), () if rng.random() < (0.6 if b > 60 else 0.1) else ("add",), True, True
        )
        for b in range(100)
        for _ in range(8)
    ]
    alarms = scan_version(ProfileView(fold(wrong)), "s", 1, 200, catalog=20)
    assert [a.skill for a in alarms if a.kind == "abstention"] == [UNEXPLAINED] and UNEXPLAINED in ABSTENTIONS


def traffic(weights: list[list[float]], seed: int = 0) -> list[Observation]:
    rng, skills = random.Random(seed), ("add", "gcd", "max", "order")
    return [
        Observation("s", 1, 250 * phase + b, (rng.choices(skills, phase_weights)[0],))
        for phase, phase_weights in enumerate(weights)
        for b in range(250)
        for _ in range(8)
    ]


def test_a_shift_of_the_traffic_is_one_alarm_and_the_new_mixture_the_reference() -> None:
    old, new = [0.4, 0.3, 0.2, 0.1], [0.2, 0.2, 0.2, 0.4]
    alarms = scan_version(ProfileView(fold(traffic([old, new, new, old]))), "s", 1, 2_000, catalog=4)
    found = [(a.kind, a.skill, a.started) for a in alarms]
    assert [(kind, skill) for kind, skill, _ in found] == [("traffic", "order"), ("traffic", "order")]
    assert 185 <= found[0][2] <= 260 and 685 <= found[1][2] <= 760
    assert alarms[0].before.missing / alarms[0].before.needed == pytest.approx(0.1, abs=0.02)


def test_a_promotion_in_steady_traffic_raises_nothing() -> None:
    """Rare skills reach further back than the answers that their shares are parts of."""
    raised = []
    for seed in range(20):
        stream = traffic([[0.5, 0.35, 0.13, 0.02]] * 2, seed)
        stream = [replace(one, version=1 + (one.bucket >= 250)) for one in stream]
        raised.append(scan_version(ProfileView(fold(stream)), "s", 2, 2_000, catalog=4))
    assert sum(map(bool, raised)) <= 1


def test_steady_traffic_raises_nothing() -> None:
    steady = [[0.4, 0.3, 0.2, 0.1]] * 2
    raised = [
        scan_version(ProfileView(fold(traffic(steady, seed))), "s", 1, 2_000, catalog=4) for seed in range(20)
    ]
    assert sum(map(bool, raised)) <= 1


def test_thresholds_grow_with_the_catalog_and_the_horizon() -> None:
    assert threshold(SETTINGS, 100) > threshold(SETTINGS, 1)
    assert threshold(DriftSettings(horizon=10_000), 1) > threshold(SETTINGS, 1)
    assert sidak(0.05, 1) == pytest.approx(0.05)


@pytest.mark.parametrize(
    "bad",
    [{"mastered": 0.0}, {"odds_ratio": 0.9}, {"lateness_buckets": -1}, {"horizon": 0}, {"traffic_window": 0}],
)
def test_settings_are_checked(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        DriftSettings(**bad)
