"""The offline method on real questions and answers, where ../shared/data is there. No text of that folder is
printed or kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from graphs.filters.grading import MathGrader
from loop.offline.checks import agreement, difficult_questions, duplicates, selection_counts
from loop.tasks.questions import read_questions

DATA = Path(__file__).parents[4] / "shared" / "data"
pytestmark = pytest.mark.skipif(
    not DATA.is_dir(), reason=f"{DATA} is absent: the real questions are not part of the project"
)

EXPLAINED = {
    f"out-3-{sample}": (
        "the answer is a time of day; the flag's evaluator lost its 'p.m.' and compared '4:30' with it"
    )
    for sample in range(8)
}


def test_the_gold_filter_agrees_with_the_flags_but_for_explained_answers() -> None:
    with MathGrader() as grade:
        found = agreement(DATA / "student_outputs_math.jsonl.gz", grade)
    assert {one.answer_id for one in found.disagreements} == set(EXPLAINED)
    assert all(
        one.flag is False and one.graded is True and one.extracted == "4:30" for one in found.disagreements
    )
    assert found.answers == 480 and found.share > 0.98


def test_stat_sel_reproduces_the_papers_counts() -> None:
    pool, test = read_questions(DATA / "math_train.jsonl.gz"), read_questions(DATA / "math_test.jsonl.gz")
    failures = difficult_questions(test, pool, 500, seed=0)
    found = selection_counts(pool, failures, seed=0)
    assert found.difficult == 500 and {len(one.missing) for one in failures} <= {1, 2, 3}
    assert 2.3 <= found.targets / found.difficult <= 2.7
    short = sum(report.wanted - report.picked for report in found.pools.values())
    assert found.drawn == 5 * found.targets - short and short < 0.01 * found.drawn
    assert all(report.picked == report.wanted for report in found.pools.values() if report.pool >= 5)
    assert (
        found.pairs == 9_500 and 3_400 <= found.pair_items <= 4_000
    )  # the paper: 9.5k pairs, about 4k questions
    assert len(found.pools) > 100 and sum(report.pool < 5 for report in found.pools.values()) <= 6


def test_minhash_finds_the_real_repeats_of_test_questions_in_training() -> None:
    train, test = read_questions(DATA / "math_train.jsonl.gz"), read_questions(DATA / "math_test.jsonl.gz")
    found = duplicates(train, test)
    exact = {item_id for item_id, same in found.items() if same == "exact"}
    assert exact == {"math-train-54966b3d58", "math-train-b8fe3575c6", "math-train-981caf49c9"}
    assert 70 <= len(found) - len(exact) <= 80 and found["math-train-a9fba53b02"] == "near"
