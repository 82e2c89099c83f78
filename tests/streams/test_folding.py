"""The bulk fold gives what the plain fold gives."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.profile import (
    ALL,
    UNDECIDED,
    UNEXPLAINED,
    UNLABELLED,
    Observation,
    alone_row,
    canonical_bytes,
    fold,
    wrong_row,
)
from streams.events import Diagnosed
from streams.folding import fold_diagnoses, fold_handler
from streams.testing.synthetic import SKILLS, diagnosed, output

EVENT = diagnosed(output(1))


@st.composite
def diagnoses(draw: st.DrawFn) -> Diagnosed:
    needed = tuple(draw(st.lists(st.sampled_from(SKILLS), unique=True, max_size=3)))
    missing = tuple(skill for skill in needed if draw(st.booleans()))
    verdict = draw(
        st.sampled_from(["abstained", "incorrect"] if missing else ["correct", "incorrect", "abstained"])
    )
    where = {
        "student": draw(st.sampled_from("ab")),
        "student_version": draw(st.integers(1, 2)),
        "bucket": draw(st.integers(0, 2)),
    }
    by_filters = "correct" if verdict == "correct" else "incorrect"
    judged = draw(st.sampled_from([None, by_filters, *(["undecided"] if verdict == "abstained" else [])]))
    found = {"needed": needed, "missing": missing, "verdict": verdict, "judged": judged}
    return EVENT.model_copy(update={**where, **found})


@given(events=st.lists(diagnoses(), max_size=30))
def test_in_bulk_as_one_by_one(events: list[Diagnosed]) -> None:
    one_by_one = fold(
        Observation(
            *(e.student, e.student_version, e.bucket, e.needed, e.missing),
            "incorrect" in (e.verdict, e.judged),
            None if e.judged is None else e.judged != "undecided",
        )
        for e in events
        if e.verdict != "abstained" or e.judged
    )
    assert fold_diagnoses(events) == one_by_one
    effects = fold_handler(events)
    assert effects.buckets == fold_diagnoses(events)
    watched = Counter((e.student, e.student_version) for e in events)
    assert effects.watermarks == {
        key: (count, EVENT.occurred_at.timestamp()) for key, count in watched.items()
    }


@pytest.mark.parametrize(
    ("needed", "missing", "why"),
    [
        (("a",), ("b",), "not needed"),
        (("a", "a"), (), "repeats"),
        (("a",), ("a", "a"), "repeats"),
        (("*",), (), "reserved"),
    ],
)
def test_an_unclean_diagnosis_is_refused(needed: tuple[str, ...], missing: tuple[str, ...], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        fold_diagnoses([EVENT.model_copy(update={"needed": needed, "missing": missing})])


def test_diagnoses_that_do_not_say_how_they_were_judged_fold_as_they_always_did() -> None:
    """`profile rebuild` of an old log gives the old bytes."""
    unexplained = {"verdict": "incorrect", "needed": ("add", "gcd"), "missing": ()}
    old = [
        EVENT.model_copy(
            update={"event_id": str(n), "student": "s", "student_version": 1, "bucket": 7} | more
        )
        for n, more in enumerate(
            [
                {"verdict": "incorrect", "needed": ("add", "gcd"), "missing": ("gcd",)},
                {"verdict": "abstained", "needed": ("add",), "missing": ()},
                {"verdict": "correct", "needed": (), "missing": ()},
                unexplained,
            ]
        )
    ]
    expected = b'["s",1,"*",7,3,2]\n["s",1,"add",7,2,0]\n["s",1,"gcd",7,2,1]\n'
    assert canonical_bytes(fold_diagnoses(old)) == expected


def test_right_and_wrong_answers_count_alike_whether_labelled_or_explained_or_not() -> None:
    cases = [
        ("correct", "correct", ("add",), ()),
        ("incorrect", "incorrect", ("add",), ("add",)),
        ("abstained", "incorrect", ("add",), ()),  # the teacher has nothing to say
        ("correct", "correct", (), ()),
        ("abstained", "incorrect", (), ()),  # nobody labelled the question
        ("abstained", "undecided", ("add",), ()),
    ]
    names = ("verdict", "judged", "needed", "missing")
    events = [EVENT.model_copy(update=dict(zip(names, case, strict=True))) for case in cases]
    assert {key[2]: counts for key, counts in fold_diagnoses(events).items()} == {
        ALL: (5, 3),
        "add": (3, 1),
        wrong_row("add"): (2, 1),
        alone_row("add"): (2, 1),
        UNDECIDED: (6, 1),
        UNLABELLED: (2, 2),
        UNEXPLAINED: (2, 1),
    }
