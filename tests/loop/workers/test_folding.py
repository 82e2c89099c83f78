"""The bulk fold gives what the plain fold gives."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.profile import Observation, fold
from loop.workers.folding import fold_handler, fold_in_bulk
from streams.events import Diagnosed
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
    assert fold_in_bulk(events) == {tuple(key): tuple(counts) for key, counts in one_by_one.items()}
    effects = fold_handler(events)
    assert effects.buckets == fold_in_bulk(events)
    watched = Counter((e.student, e.student_version) for e in events)
    assert effects.watermarks == {
        key: (count, EVENT.occurred_at.timestamp()) for key, count in watched.items()
    }


@pytest.mark.parametrize(
    ("needed", "missing"), [(("a",), ("b",)), (("a", "a"), ()), (("a",), ("a", "a")), (("*",), ())]
)
def test_an_unclean_diagnosis_is_refused(needed: tuple[str, ...], missing: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="no clean diagnosis"):
        fold_in_bulk([EVENT.model_copy(update={"needed": needed, "missing": missing})])
