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
        ReadSettings(**bad)


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


def half_explained(
    rates: dict[str, float], answers: int, silent: float, unlabelled: float, seed: int
) -> list[Observation]:
    """Answers that need one to three of the skills; nobody explains a `silent` part of the wrong ones."""
    rng, stream = random.Random(seed), []
    for _ in range(answers):
        needed = tuple(rng.sample(sorted(rates), rng.randint(1, len(rates))))
        missing = tuple(skill for skill in needed if rng.random() < rates[skill])
        wrong, told = bool(missing), missing if rng.random() >= silent else ()
        if rng.random() < unlabelled:
            needed, told = (), ()
        stream.append(Observation("s", 1, 0, needed, told, wrong, judged=True))
    return stream


def test_wrong_answers_that_nobody_explains_do_not_flatter_the_student() -> None:
    """They were left out while all right ones counted: a true miss rate of .40 read .30."""
    rates = {"add": 0.4, "gcd": 0.2, "max": 0.1}
    means: dict[str, list[float]] = {skill: [] for skill in rates}
    inside = 0
    for seed in range(60):
        profile = read(fold(half_explained(rates, 600, 0.4, 0.0, seed)), "s", 1, 0, PLAIN)
        for estimate in profile.skills:
            means[estimate.skill].append(estimate.mean)
            inside += estimate.low <= rates[estimate.skill] <= estimate.high
            assert estimate.wrong > estimate.unexplained > 0 and estimate.needed < estimate.raw.needed
    for skill, rate in rates.items():
        assert sum(means[skill]) / 60 == pytest.approx(rate, abs=0.01)
    assert 0.84 <= inside / 180 <= 0.96


def test_questions_without_labels_count_whether_right_or_wrong() -> None:
    """Right ones counted and wrong ones did not: a true .374 read .237."""
    stream = half_explained({"add": 0.374}, 4_000, silent=0.0, unlabelled=0.5, seed=1)
    profile = read(fold(stream), "s", 1, 0, PLAIN)
    assert profile.accuracy == pytest.approx(1 - 0.374, abs=0.02)
    coverage = profile.coverage
    assert (coverage.watched, coverage.judged) == (4_000, 4_000)
    assert coverage.labelled == pytest.approx(2_000, abs=120)
    assert coverage.wrong == coverage.explained == pytest.approx(0.374 * coverage.labelled, abs=60)
    (add,) = profile.skills
    assert add.mean == pytest.approx(0.374, abs=0.03) and add.explained == 1.0


def test_undecided_answers_show_in_the_coverage_only() -> None:
    stream = [*answers("gcd", 10, 5), *[Observation("s", 1, 0, ("gcd",), judged=False)] * 5]
    profile = read(fold(stream), "s", 1, 0, PLAIN)
    assert profile.answers == 10 and profile.coverage.watched - profile.coverage.judged == 5


def test_a_skill_that_nobody_could_explain_yet_is_uncertain_not_mastered() -> None:
    stream = [Observation("s", 1, 0, ("gcd", "add"), (), i < 50, judged=True) for i in range(100)]
    gcd = read(fold(stream), "s", 1, 0, PLAIN).get("gcd")
    assert gcd is not None and gcd.low < 0.15 and gcd.high > 0.4 and gcd.explained == 0.0


def test_explained_answers_only_read_as_without_coverage() -> None:
    stream = half_explained({"add": 0.4, "gcd": 0.2}, 300, 0.0, 0.0, seed=2)
    plain = [Observation("s", 1, 0, o.needed, o.missing) for o in stream]
    with_coverage, without = read(fold(stream), "s", 1, 0, PLAIN), read(fold(plain), "s", 1, 0, PLAIN)
    assert [(e.mean, e.low, e.high) for e in with_coverage.skills] == [
        (e.mean, e.low, e.high) for e in without.skills
    ]


def test_a_view_takes_rows_over_and_forgets_old_ones() -> None:
    table = fold([a for b in range(400) for a in answers("gcd", 2, 1, bucket=b)])
    view, settings = ProfileView(table), ReadSettings(window_buckets=100, half_life_buckets=50.0)
    before = view.read("s", 1, 399, settings)
    view.put(table)
    view.forget("s", 1, 300)
    assert view.read("s", 1, 399, settings) == before
    assert min(view.buckets("s", 1, "gcd")) == 256
    view.put({BucketKey("s", 1, "gcd", 399): Counts(4, 2)})
    assert view.read("s", 1, 399, settings) == ProfileView(
        table | {BucketKey("s", 1, "gcd", 399): Counts(4, 2)}
    ).read("s", 1, 399, settings)


@given(
    st.lists(st.integers(0, 400), min_size=1, max_size=60),
    st.lists(
        st.tuples(st.integers(0, 420), st.sampled_from([1, 30, 64, 65, 150, None])), min_size=1, max_size=8
    ),
    st.integers(0, 60),
)
def test_a_view_sums_each_window_bucket_by_bucket(
    buckets: list[int], windows: list[tuple[int, int | None]], late: int
) -> None:
    """Whole blocks are summed once; what is read later, or comes in late, must not notice."""
    rows = {BucketKey("s", 1, "gcd", bucket): Counts(3, bucket % 3) for bucket in buckets}
    names = list(rows)
    view = ProfileView({key: rows[key] for key in names[late:]})
    for turn, (as_of, window) in enumerate(windows):
        if turn == len(windows) // 2:
            view.put({key: rows[key] for key in names[:late]})
        settings = ReadSettings(window_buckets=window, half_life_buckets=100.0)
        held = names if turn >= len(windows) // 2 else names[late:]
        inside = [key.bucket for key in held if (window is None or key.bucket > as_of - window)]
        inside = [bucket for bucket in inside if bucket <= as_of]
        estimate = view.read("s", 1, as_of, settings).get("gcd")
        assert (estimate.raw if estimate else Counts(0, 0)).needed == 3 * len(inside)
        if estimate is not None:
            weights = [2.0 ** ((bucket - as_of) / 100.0) for bucket in inside]
            assert estimate.needed == pytest.approx(3 * sum(weights))
            missing = sum(w * (bucket % 3) for w, bucket in zip(weights, inside, strict=True))
            assert estimate.missing == pytest.approx(missing)
