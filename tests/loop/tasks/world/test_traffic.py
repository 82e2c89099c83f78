"""The demo's traffic: resumable, and drifting when it should."""

from __future__ import annotations

from collections import Counter

import pytest

from loop.tasks.world.questions import parse
from loop.tasks.world.traffic import (
    DEFAULT_SCHEDULE,
    FIRST_SHIFT_SKILLS,
    SECOND_SHIFT_SKILLS,
    Phase,
    Traffic,
    drawn_drift,
)
from loop.tasks.world.world import ORIGINAL, RARE, STUBBORN, split_of


def test_a_question_depends_on_seed_and_index_only() -> None:
    forward = [Traffic(1).question(index) for index in range(50)]
    assert [Traffic(1).question(index) for index in reversed(range(50))] == forward[::-1]
    assert len({question_id for question_id, _ in forward}) == 50
    assert Traffic(2).question(0) != forward[0]


def test_traffic_comes_from_its_split() -> None:
    links = [link for index in range(300) for link in parse(Traffic(0).question(index)[1].question) or ()]
    assert {split_of(link.skill, link.args) for link in links} == {"traffic"}


@pytest.mark.parametrize(("phase", "raised"), [(0, ()), (1, FIRST_SHIFT_SKILLS), (2, SECOND_SHIFT_SKILLS)])
def test_each_phase_raises_its_skills(phase: int, raised: tuple[str, ...]) -> None:
    start = DEFAULT_SCHEDULE[phase].start
    counts = Counter(
        skill for index in range(start, start + 800) for skill in Traffic(0).question(index)[1].skills
    )
    for skill in RARE:
        share = counts[skill] / counts.total()
        assert share > 0.1 if skill in raised else share < 0.02


def test_the_shifts_raise_different_rare_skills() -> None:
    assert not set(FIRST_SHIFT_SKILLS) & set(SECOND_SHIFT_SKILLS)
    assert {*FIRST_SHIFT_SKILLS, *SECOND_SHIFT_SKILLS} <= set(RARE)


def test_drawn_drifts_differ_within_their_bounds() -> None:
    drifts = [drawn_drift(seed) for seed in range(40)]
    assert drifts[0] == drawn_drift(0) != drifts[1]
    for drift in drifts:
        raised = [skill for shift in drift.shifts for skill in shift]
        assert len(raised) == len(set(raised)) == 6 and raised.count(STUBBORN) == 1
        assert set(drift.pool) == set(raised) - {STUBBORN} <= set(RARE)
        assert all(20 <= count <= 300 for count in drift.pool.values())
        assert all(0.02 <= share <= 0.25 for shift in drift.shifts for share in shift.values())
    small = [count < 50 for drift in drifts for count in drift.pool.values()]
    assert any(small) and not all(small), "some must be selected, some written"


@pytest.mark.parametrize("schedule", [(), (Phase(5, ORIGINAL),), (Phase(0, ORIGINAL), Phase(0, ORIGINAL))])
def test_a_schedule_without_ascending_starts_is_refused(schedule: tuple[Phase, ...]) -> None:
    with pytest.raises(ValueError, match="ascending"):
        Traffic(0, schedule)


def test_a_negative_index_is_refused() -> None:
    with pytest.raises(ValueError, match="start at 0"):
        Traffic(0).question(-1)
