"""Reading: windows, decay, posteriors, predecessors."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.posterior import ProfileView, ReadSettings, read
from agent.profile import ALL, BucketKey, Counts, Observation, fold

PLAIN = ReadSettings(window_buckets=None, half_life_buckets=None)


def answers(skill: str, needed: int, missing: int, version: int = 1, bucket: int = 0) -> list[Observation]:
    return [
        Observation("s", version, bucket, (skill,), (skill,) if i < missing else ()) for i in range(needed)
    ]


def test_an_empty_profile_is_readable() -> None:
    profile = read({}, "s", 1, as_of_bucket=0)
    assert profile.skills == () and profile.answers == 0 and profile.accuracy is None
    assert profile.get("gcd") is None


def test_share_accuracy_and_priority() -> None:
    profile = read(fold(answers("add", 75, 5) + answers("gcd", 25, 15)), "s", 1, 0, PLAIN)
    gcd = profile.get("gcd")
    assert gcd is not None and profile.accuracy == pytest.approx(0.8)
    assert gcd.share == pytest.approx(0.25)
    assert gcd.mean == pytest.approx(16 / 27) and gcd.low < gcd.mean < gcd.high
    assert gcd.priority == pytest.approx(gcd.mean * 0.25)
    assert [e.skill for e in profile.skills] == ["gcd", "add"]


def test_the_future_and_what_left_the_window_are_not_read() -> None:
    table = fold(
        answers("gcd", 4, 4, bucket=0) + answers("gcd", 8, 0, bucket=5) + answers("gcd", 16, 16, bucket=6)
    )
    estimate = read(table, "s", 1, 5, ReadSettings(window_buckets=5, half_life_buckets=None)).get("gcd")
    assert estimate is not None and estimate.raw == Counts(8, 0)
    estimate = read(table, "s", 1, 5, ReadSettings(window_buckets=6, half_life_buckets=None)).get("gcd")
    assert estimate is not None and estimate.raw == Counts(12, 4)


def test_evidence_halves_with_each_half_life() -> None:
    estimate = read(fold(answers("gcd", 8, 4)), "s", 1, 20, ReadSettings(half_life_buckets=10)).get("gcd")
    assert estimate is not None
    assert (estimate.needed, estimate.missing, estimate.raw) == (2.0, 1.0, Counts(8, 4))


def test_a_predecessor_is_a_capped_prior() -> None:
    table = fold(answers("gcd", 1000, 900, version=1) + answers("gcd", 40, 2, version=2))
    alone = read(table, "s", 2, 0, PLAIN).get("gcd")
    after = read(table, "s", 2, 0, PLAIN, predecessor=1).get("gcd")
    assert alone is not None and after is not None
    assert after.mean == pytest.approx((1 + 4.5 + 2) / (2 + 5 + 40))
    assert after.mean > alone.mean and after.high < 0.30
    assert after.raw == alone.raw == Counts(40, 2)


def test_a_new_version_without_answers_shows_its_predecessors_evidence_at_no_priority() -> None:
    profile = read(fold(answers("gcd", 100, 90)), "s", 2, 0, predecessor=1)
    (gcd,) = profile.skills
    assert (
        profile.answers == 0 and gcd.raw == Counts() and gcd.share == gcd.priority == 0.0 and gcd.mean > 0.5
    )


def test_versions_and_students_are_kept_apart() -> None:
    table = fold([*answers("gcd", 3, 3), Observation("t", 1, 0, ("gcd",))])
    view = ProfileView(table)
    assert view.versions() == (("s", 1), ("t", 1))
    assert view.read("t", 1, 0).incorrect == 0 and view.skills("t", 1) == ("gcd",)
    assert view.buckets("t", 1, ALL) == {0: Counts(1, 0)} and view.buckets("t", 2, "gcd") == {}


@given(
    rows=st.lists(st.tuples(st.sampled_from(["add", "gcd"]), st.integers(0, 40), st.booleans()), max_size=40),
    seed=st.integers(0, 99),
)
def test_reading_depends_on_the_counts_only(rows: list[tuple[str, int, bool]], seed: int) -> None:
    stream = [Observation("s", 1, bucket, (skill,), (skill,) if miss else ()) for skill, bucket, miss in rows]
    shuffled = list(stream)
    random.Random(seed).shuffle(shuffled)
    live = ProfileView()
    for start in range(0, len(shuffled), 7):
        live.add(fold(shuffled[start : start + 7]))
    assert live.read("s", 1, 40) == read(fold(stream), "s", 1, 40)


def test_a_row_without_answers_has_no_share() -> None:
    (estimate,) = read({BucketKey("s", 1, "gcd", 0): Counts(3, 1)}, "s", 1, 0).skills
    assert estimate.share == 0.0 and estimate.priority == 0.0


@pytest.mark.parametrize(
    "bad",
    [
        {"window_buckets": 0},
        {"half_life_buckets": 0.0},
        {"prior_mean": 1.0},
        {"prior_strength": 0.0},
        {"predecessor_cap": -1.0},
    ],
)
def test_settings_are_checked(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        ReadSettings(**bad)  # type: ignore[arg-type]


def test_the_profile_is_light_to_import() -> None:
    code = "import sys, agent.profile, agent.posterior; print(sorted({'numpy', 'scipy'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.strip() == "[]"


def test_a_bad_skill_is_found_in_a_noiseless_stream() -> None:
    rng = random.Random(3)
    stream = []
    for bucket in range(60):
        for _ in range(10):
            skill, rate = ("gcd", 0.7) if rng.random() < 0.12 else ("add", 0.05)
            stream.append(Observation("s", 1, bucket, (skill,), (skill,) if rng.random() < rate else ()))
    profile = read(fold(stream), "s", 1, 59)
    assert [e.skill for e in profile.skills if e.low > 0.25] == ["gcd"]
