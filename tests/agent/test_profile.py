"""The fold: order, batching, duplicates and restarts do not matter."""

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.catalog import SkillCatalog
from agent.profile import (
    ALL,
    BucketKey,
    Counts,
    Observation,
    bucket_of,
    canonical_bytes,
    constrain,
    fold,
    merge,
)

SKILLS = ("add", "gcd", "max", 'é"\n')
CATALOG = SkillCatalog.of(*((name, "") for name in ("add", "gcd", "max")))


@st.composite
def observations(draw: st.DrawFn) -> Observation:
    needed = tuple(draw(st.lists(st.sampled_from(SKILLS), unique=True, max_size=4)))
    missing = tuple(skill for skill in needed if draw(st.booleans()))
    student, version = draw(st.sampled_from(["s", "t"])), draw(st.integers(0, 2))
    return Observation(student, version, draw(st.integers(-2, 3)), needed, missing, draw(st.booleans()))


streams = st.lists(observations(), max_size=30)


@given(stream=streams, seed=st.integers(0, 2**16))
def test_order_does_not_matter(stream: list[Observation], seed: int) -> None:
    shuffled = list(stream)
    random.Random(seed).shuffle(shuffled)
    assert canonical_bytes(fold(shuffled)) == canonical_bytes(fold(stream))


@given(stream=streams, cuts=st.lists(st.integers(0, 30), max_size=4), seed=st.integers(0, 2**16))
def test_batches_and_restarts_do_not_matter(stream: list[Observation], cuts: list[int], seed: int) -> None:
    edges = [0, *sorted(cuts), len(stream)]
    parts = [fold(stream[a:b]) for a, b in pairwise(edges)]
    random.Random(seed).shuffle(parts)
    assert canonical_bytes(merge(*parts)) == canonical_bytes(fold(stream))


@given(stream=streams, again=st.lists(st.integers(0, 29), max_size=10))
def test_redelivery_does_not_matter_when_events_are_known_by_id(
    stream: list[Observation], again: list[int]
) -> None:
    delivered = [*enumerate(stream), *((i, stream[i]) for i in again if i < len(stream))]
    assert fold(dict(delivered).values()) == fold(stream)


@given(left=streams, middle=streams, right=streams)
@settings(max_examples=50)
def test_merge_is_commutative_and_associative(
    left: list[Observation], middle: list[Observation], right: list[Observation]
) -> None:
    a, b, c = fold(left), fold(middle), fold(right)
    assert merge(a, merge(b, c)) == merge(merge(c, a), b)
    assert merge(a, {}) == merge(a) == a


@given(stream=streams)
def test_the_table_counts_answers_and_opportunities(stream: list[Observation]) -> None:
    table = fold(stream)
    totals = [counts for key, counts in table.items() if key.skill == ALL]
    assert sum(c.needed for c in totals) == len(stream)
    assert sum(c.missing for c in totals) == sum(o.wrong for o in stream)
    assert all(0 <= c.missing <= c.needed for c in table.values())


def test_merge_leaves_its_arguments_alone() -> None:
    key = BucketKey("s", 1, "add", 0)
    table = {key: Counts(1, 0)}
    merge(table, table)
    assert table == {key: Counts(1, 0)}


def test_an_incorrect_answer_without_labels_still_counts_as_incorrect() -> None:
    table = fold([Observation("s", 1, 0, ("add",), incorrect=True)])
    assert table[BucketKey("s", 1, ALL, 0)] == Counts(1, 1)
    assert table[BucketKey("s", 1, "add", 0)] == Counts(1, 0)


@pytest.mark.parametrize(
    ("needed", "missing", "match"),
    [(("add",), ("gcd",), "constrain"), (("add", "add"), (), "repeats"), ((ALL,), (), "reserved")],
)
def test_an_observation_is_checked(needed: tuple[str, ...], missing: tuple[str, ...], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Observation("s", 1, 0, needed, missing)


@pytest.mark.parametrize(
    ("raw", "needed", "kept", "discarded"),
    [
        (["gcd", "add"], ["add", "gcd"], ("add", "gcd"), 0),
        (["gcd"], ["add"], ("add",), 0),
        (["gcd", "add"], ["add"], ("add",), 0),
        (["gcd"], ["add", "max"], (), 1),
        (["nonsense"], ["add"], (), 1),
        (["nonsense", "nonsense", "add"], ["add"], ("add",), 1),
        (["add"], [], (), 1),
        ([], ["add"], (), 0),
    ],
)
def test_labels_are_snapped_to_the_needed_skills(
    raw: list[str], needed: list[str], kept: tuple[str, ...], discarded: int
) -> None:
    assert constrain(raw, needed, CATALOG) == (kept, discarded)


@given(raw=st.lists(st.sampled_from((*SKILLS, "zzz"))), needed=st.lists(st.sampled_from(SKILLS), unique=True))
def test_snapped_labels_always_make_an_observation(raw: list[str], needed: list[str]) -> None:
    missing, discarded = constrain(raw, needed, CATALOG)
    assert Observation("s", 1, 0, tuple(needed), missing).missing == missing
    assert 0 <= discarded <= len(set(raw))


def test_buckets_need_a_positive_length() -> None:
    with pytest.raises(ValueError, match="positive"):
        bucket_of(1.0, 0)
