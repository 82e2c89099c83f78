"""CUSUM: false alarms as calibrated, sane delays, closed buckets only."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.drift import CusumState, CusumTest, DriftSettings, calibrate, design, scan, scan_version, sidak
from agent.posterior import ProfileView
from agent.profile import Counts, Observation, fold

P0, P1 = 0.2, 1 / 3


def first_alarms(test: CusumTest, rate: float, streams: int, length: int, seed: int) -> np.ndarray:
    """Answers until the alarm in each stream of single answers, shape (streams,); `length + 1` where there
    was none."""
    missed = np.random.default_rng(seed).random((streams, length)) < rate
    steps = np.where(missed, test.increment(Counts(1, 1)), test.increment(Counts(1, 0)))
    sums = np.concatenate([np.zeros((streams, 1)), np.cumsum(steps, axis=1)], axis=1)
    over = sums[:, 1:] - np.minimum.accumulate(sums, axis=1)[:, 1:] > test.h
    return np.where(over.any(axis=1), over.argmax(axis=1) + 1, length + 1)


@pytest.mark.parametrize(("p0", "p1"), [(0.1, 0.2), (0.2, 1 / 3), (0.5, 2 / 3)])
@pytest.mark.parametrize("false_alarm", [0.01, 0.002])
def test_false_alarms_are_as_calibrated(p0: float, p1: float, false_alarm: float) -> None:
    test = CusumTest(p0, p1, calibrate(p0, p1, false_alarm))
    rate = float((first_alarms(test, p0, 4_000, 1_000, seed=11) <= 1_000).mean())
    spread = math.sqrt(false_alarm / 4_000) + 0.1 * false_alarm  # sampling here, and of the calibration
    assert rate <= false_alarm + 4 * spread
    assert rate >= false_alarm - 4 * spread


def test_a_family_of_skills_keeps_the_family_level() -> None:
    skills, family = 13, 0.05
    test = CusumTest(P0, P1, calibrate(P0, P1, sidak(family, skills)))
    alarms = first_alarms(test, P0, 500 * skills, 1_000, seed=5).reshape(500, skills) <= 1_000
    assert 0.02 <= alarms.any(axis=1).mean() <= 0.09


def test_delays_are_sane() -> None:
    test = CusumTest(P0, P1, calibrate(P0, P1, 0.01))
    assert np.median(first_alarms(test, 0.4, 500, 1_000, seed=2)) < 120
    slow = first_alarms(test, 0.3, 500, 2_000, seed=3)
    assert np.median(slow) < 300 and (slow > 2_000).mean() < 0.01


@given(misses=st.lists(st.booleans(), min_size=1, max_size=120), size=st.integers(1, 30))
def test_a_grouped_scan_never_exceeds_the_answer_by_answer_one(misses: list[bool], size: int) -> None:
    test = CusumTest(P0, P1, h=2.0)
    single = {i: Counts(1, int(miss)) for i, miss in enumerate(misses)}
    grouped = {i // size: Counts() for i in single}
    for i, counts in single.items():
        grouped[i // size] = grouped[i // size].plus(counts)
    one, many = scan(single, test, 10**6), scan(grouped, test, 10**6)
    assert many.statistic <= one.statistic + 1e-9
    if many.alarm_bucket is not None:
        assert one.alarm_bucket is not None and one.alarm_bucket // size <= many.alarm_bucket


def test_only_closed_buckets_count() -> None:
    test, bad = CusumTest(P0, P1, h=3.0), {7: Counts(20, 20)}
    assert scan(bad, test, as_of_bucket=9, lateness_buckets=2) == CusumState()
    assert scan(bad, test, as_of_bucket=10, lateness_buckets=2).alarm_bucket == 7


def test_an_alarm_stays_and_dates_the_change() -> None:
    rows = (
        {b: Counts(20, 4) for b in range(10)}
        | {b: Counts(20, 12) for b in range(10, 13)}
        | {b: Counts(20, 0) for b in range(13, 40)}
    )
    state = scan(rows, CusumTest(P0, P1, h=8.0), as_of_bucket=99)
    assert state.alarm_bucket in (11, 12) and state.started_bucket == 10 and state.statistic == 0.0


def test_an_empty_or_quiet_skill_raises_nothing() -> None:
    test = design(Counts(), skills=3)
    assert scan({}, test, 5) == CusumState() == scan({0: Counts(500, 5)}, test, 5)


def test_a_design_is_careful_with_short_references() -> None:
    short, long = design(Counts(10, 3), skills=1), design(Counts(1000, 300), skills=1)
    assert short.p0 < 0.35 and 0.30 <= long.p0 <= 0.33
    assert design(Counts(1000, 10), skills=1).p0 == DriftSettings().mastered
    assert design(Counts(10, 10), skills=1).p0 <= 0.95
    assert design(Counts(), skills=13).h > design(Counts(), skills=1).h


def test_every_skill_of_a_version_is_scanned() -> None:
    stream = [
        Observation("s", 1, b, (skill,), (skill,) if bad else ())
        for b in range(30)
        for skill, bad in [("gcd", b > 9), ("add", False)]
    ]
    states = scan_version(
        ProfileView(fold(stream)), "s", 1, as_of_bucket=99, reference={"gcd": Counts(200, 10)}
    )
    assert set(states) == {"add", "gcd"} and states["add"].alarm_bucket is None
    assert states["gcd"].alarm_bucket is not None and states["gcd"].started_bucket == 10


def test_calibration_is_deterministic_and_checked() -> None:
    assert calibrate(0.2, 0.3, 0.01, 200) == calibrate.__wrapped__(0.2, 0.3, 0.01, 200)
    assert calibrate(0.2, 0.3, 0.001) > calibrate(0.2, 0.3, 0.01) > calibrate(0.2, 0.3, 0.1)
    with pytest.raises(ValueError, match="p0 < p1"):
        calibrate(0.3, 0.2, 0.01)
    assert sidak(0.05, 1) == pytest.approx(0.05)


@pytest.mark.parametrize(
    "bad", [{"mastered": 0.0}, {"odds_ratio": 1.0}, {"lateness_buckets": -1}, {"horizon": 0}]
)
def test_settings_are_checked(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        DriftSettings(**bad)  # type: ignore[arg-type]
