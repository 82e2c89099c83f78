"""Difficulty filters: the gold answer by math-verify, self-consistency, process rewards, and the chain by
names."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from agent.catalog import SkillCatalog
from graphs.filters.assess import Feedback, GoldAnswer, TeacherVerdict
from graphs.filters.chain import (
    FilterParts,
    ProcessRewards,
    SelfConsistency,
    Unanimous,
    filters,
    is_difficult,
    steps_of,
)
from graphs.filters.grading import MathGrader
from graphs.monitor.diagnose import MonitorContext
from graphs.monitor.graph import build_monitor, diagnose_outputs
from graphs.teacher import Diagnosis
from graphs.testing.scripted import ScriptedTeacher
from streams.events import StudentOutput

DATA = Path(__file__).parents[4] / "shared" / "data" / "student_outputs_math.jsonl.gz"


@pytest.fixture(scope="module")
def grade() -> Iterator[MathGrader]:
    with MathGrader() as grader:
        yield grader


def output(answer: str = "answer", **more: Any) -> StudentOutput:
    when = datetime(2026, 11, 1, tzinfo=UTC)
    return StudentOutput(
        event_id="e", occurred_at=when, student="s", student_version=1, question="q", answer=answer, **more
    )


def nobody() -> Diagnosis:
    raise AssertionError("this filter does not ask the teacher")


@pytest.mark.parametrize(
    ("gold", "answer", "right"),
    [
        (r"\frac12", r"so it is \boxed{0.5}", True),
        (r"\dfrac{1}{9}", r"\boxed{\frac{1}{9}}", True),
        ("x^2+2x+1", r"\boxed{(x+1)^2}", True),
        (r"\text{4:30 p.m.}", r"\boxed{4:30 \text{ p.m.}}", True),
        (r"4\text{ m}", r"\boxed{4\text{ cm}}x", True),
        (r"900,\!000,\!000", r"\boxed{900000000}", True),
        ("12", r"\boxed{12} or rather \boxed{13}", False),
        ("5", "The answer is $5$.", True),
        ("5", "I do not know.", False),
        ("", r"\boxed{3}", None),
    ],
)
def test_math_answers(grade: MathGrader, gold: str, answer: str, right: bool | None) -> None:
    assert grade("q", gold, answer) is right


def test_an_answer_that_cannot_be_computed_in_time_is_undecided_and_the_next_one_is_graded() -> None:
    with MathGrader(timeout_s=1) as impatient:
        assert impatient("q", "9", r"\boxed{9^{9^{9^{9}}}}") is None
        assert impatient("q", "9", r"\boxed{9}") is True


def test_grading_works_from_any_thread(grade: MathGrader) -> None:
    found: list[bool | None] = []
    threads = [
        threading.Thread(target=lambda: found.append(grade("q", "0.5", r"\boxed{\frac12}"))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 4


def test_the_gold_filter_works_in_the_monitor_graph(grade: MathGrader) -> None:
    context = MonitorContext(
        ScriptedTeacher(labels={"q": ("add",)}),
        SkillCatalog.of(("add", "")),
        filters(["gold"], FilterParts(grade=grade)),
    )
    batch = [
        output(r"\boxed{0.5}", gold=r"\frac12"),
        output(r"\boxed{0.6}", gold=r"\frac12"),
        output("no gold"),
    ]
    assert [one.decided_by for one in diagnose_outputs(build_monitor(), batch, context)] == [
        "gold",
        "gold",
        "none",
    ]


@pytest.mark.slow
@pytest.mark.skipif(not DATA.exists(), reason=f"needs {DATA}")
def test_agreement_with_480_human_checked_answers(grade: MathGrader) -> None:
    """The only disagreements are eight answers "4:30 p.m." that the original evaluator cut to "4:30" and
    called wrong."""
    with gzip.open(DATA, "rt") as lines:
        rows = [json.loads(line) for line in lines]
    differ = [
        row
        for row in rows
        if grade(row["question"], row["reference_answer"], row["response"]) != row["graded_correct"]
    ]
    assert len(rows) == 480 and len(differ) == 8
    assert {(row["reference_answer"], row["extracted"], row["graded_correct"]) for row in differ} == {
        (r"\text{4:30 p.m.}", "4:30", False)
    }
    assert all(r"\boxed{4:30 \text{ p.m.}}" in row["response"] for row in differ)


@pytest.mark.parametrize(
    ("rewards", "difficult"),
    [
        ([0.86], False),
        ([0.85], True),
        ([0.71, 0.95, 0.95], False),
        ([0.70, 0.99, 0.99], True),
        ([0.72, 0.80, 0.90], True),
        ([0.99, 0.99, 0.85], True),
    ],
)
def test_the_papers_rule(rewards: list[float], difficult: bool) -> None:
    assert is_difficult(rewards) is difficult


def test_process_rewards_see_the_steps() -> None:
    seen: list[Sequence[str]] = []

    def rewards(question: str, steps: Sequence[str]) -> list[float]:
        seen.append(steps)
        return [0.9] * len(steps)

    assert ProcessRewards(rewards).assess(output("a\nb\n\nc"), nobody) == "correct" and seen == [
        ["a\nb", "c"]
    ]
    assert ProcessRewards(rewards).assess(output(" \n\n "), nobody) is None and steps_of("") == []
    assert ProcessRewards(rewards, tau1=0.95).assess(output("a"), nobody) == "incorrect"
    with pytest.raises(ValueError, match="2 rewards for 1 steps"):
        ProcessRewards(lambda question, steps: [0.9, 0.9]).assess(output("a"), nobody)


@pytest.mark.parametrize(
    ("answers", "opinion"),
    [
        (["\\boxed{1}", "\\boxed{2}", "\\boxed{3}", "\\boxed{4}", "\\boxed{5}"], "incorrect"),
        (["\\boxed{1}", "\\boxed{ 1 }", "\\boxed{3}", "\\boxed{4}", "\\boxed{5}"], "correct"),
        (["", " ", "", "", "x"], "incorrect"),
    ],
)
def test_self_consistency_counts_final_answers(answers: list[str], opinion: str) -> None:
    def sample(of: StudentOutput, count: int) -> list[str]:
        assert (of.question, count) == ("q", 5)
        return answers

    assert SelfConsistency(sample).assess(output(), nobody) == opinion


def test_self_consistency_can_also_judge_the_answer_at_hand() -> None:
    filter_ = SelfConsistency(lambda question, count: [r"\boxed{1}"] * 4 + [r"\boxed{2}"], own=True)
    assert (
        filter_.assess(output(r"\boxed{2}"), nobody) == "incorrect"
        and filter_.assess(output("The answer is 1."), nobody) == "correct"
    )


def test_unanimous_filters_have_an_opinion_only_together() -> None:
    both = Unanimous((Feedback(), GoldAnswer(lambda question, gold, answer: gold == answer)))
    assert (
        both.assess(output("a", gold="a", feedback="up"), nobody) == "correct"
        and both.name == "feedback&gold"
    )
    assert both.assess(output("a", gold="b", feedback="up"), nobody) is None
    assert both.assess(output("a", feedback="up"), nobody) is None


def test_the_chain_is_built_from_names() -> None:
    parts = FilterParts(grade=lambda q, g, a: True, sample=lambda q, n: [], rewards=lambda q, s: [])
    chain = filters(["gold", "feedback", "consistency&prm", "teacher"], parts)
    assert [one.name for one in chain] == ["gold", "feedback", "consistency&prm", "teacher"] and isinstance(
        chain[-1], TeacherVerdict
    )


@pytest.mark.parametrize(
    ("names", "message"),
    [(["gould"], "did you mean 'gold'"), (["prm"], "needs a process reward model"), ([], "at least one")],
)
def test_names_that_cannot_be_chosen_are_explained(names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        filters(names, FilterParts())
