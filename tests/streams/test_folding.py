"""The bulk fold gives what the plain fold gives."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.profile import Observation, fold
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
    return EVENT.model_copy(update={**where, "needed": needed, "missing": missing, "verdict": verdict})


@given(events=st.lists(diagnoses(), max_size=30))
def test_in_bulk_as_one_by_one(events: list[Diagnosed]) -> None:
    one_by_one = fold(
        Observation(e.student, e.student_version, e.bucket, e.needed, e.missing, e.verdict == "incorrect")
        for e in events
        if e.verdict != "abstained"
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
