"""The checker: right variants pass, the first wrong line is found and named, nothing raises."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from loop.tasks.world.world import SKILLS, Mixture, check, draw, final_answer, grade, needed_skills

EVEN = Mixture(dict.fromkeys(SKILLS, 1.0), chain_share=0.6)


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("add 347 and 285 ?", "add:5+7=12;8+4+1=13;2+3+1=6->632"),
        ("add 347 and 285 ?", " ADD : 7 + 5 = 12 ; 1+4+8=13; 3+2+1=6 -> 0632\n"),
        ("add 45 and 33 ?", "add:4+3=7;5+3=8->78"),
        ("add 45 and 33", "add:5+3+0=8;4+3=7->78"),
        ("347 minus 285 ?", "sub:7-5=2;14-8=6;3-1-2=0->62"),
        ("the product of 23 and 7 ?", "mul:7*3=21;2+7*2=16->161"),
        ("pick the bigger : 54 or 77 ?", "max:7>5->77"),
        ("2 / 6 plus fraction 9 / 8 ?", "fraction:8*6=48;9*6=54;2*8=16;6+4=10;1+5+1=7->70/48"),
        ("first add 20 and 30 ; next it minus 15 ?", "add:0+0=0;2+3=5->50\nsub:10-5=5;5-1-1=3->35"),
    ],
)
def test_right_variants_are_accepted(question: str, answer: str) -> None:
    found = check(question, answer)
    assert (found.verdict, found.wrong_line, found.missing_skill) == ("correct", None, None)


@pytest.mark.parametrize(
    ("answer", "line", "skill"),
    [
        ("", 0, "add"),
        ("\x00 garbage \ud800", 0, "add"),
        ("add:0+0=0;2+3=5->50", 1, "sub"),
        ("add:0+0=0;2+3=5->51\nsub:11-5=6;5-1-1=3->36", 0, "add"),
        ("add:0+0=0->50\nsub:10-5=5;5-1-1=3->35", 0, "add"),
        ("add:0+0=0;2+3=5->50\nsub:5-1-1=3;10-5=5->35", 1, "sub"),
        ("add:0+0=0;2+3=5->50\nadd:0+5=5;5+1=6->65", 1, "sub"),
        ("sub:10-5=5;5-1-1=3->35", 0, "add"),
        ("add:0+0=0;2+3=5->50\nsub:10-5=5;5-1", 1, "sub"),
        ("add:0+0=0;2+3=5->50\nsub:10-5=5;5-1-1=3->35\nadd:1+1=2->2", 2, "sub"),
    ],
)
def test_the_first_wrong_line_names_the_missing_skill(answer: str, line: int, skill: str) -> None:
    found = check("first add 20 and 30 ; next it minus 15 ?", answer)
    assert (found.verdict, found.wrong_line, found.missing_skill) == ("incorrect", line, skill)


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32), data=st.data())
def test_a_changed_digit_is_found_in_its_line(seed: int, data: st.DataObject) -> None:
    problem = draw(Random(seed), EVEN, "pool")
    lines = problem.solution.split("\n")
    index = data.draw(st.integers(0, len(lines) - 1))
    places = [at for at, c in enumerate(lines[index]) if c.isdigit()]
    at = data.draw(st.sampled_from(places))
    digit = data.draw(st.sampled_from("0123456789"))
    assume(digit != lines[index][at])
    lines[index] = lines[index][:at] + digit + lines[index][at + 1 :]
    found = check(problem.question, "\n".join(lines))
    assert (found.verdict, found.wrong_line, found.missing_skill) == (
        "incorrect",
        index,
        problem.skills[index],
    )


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32), share=st.floats(0, 0.999))
def test_a_truncated_answer_is_wrong_where_it_ends(seed: int, share: float) -> None:
    problem = draw(Random(seed), EVEN, "pool")
    cut = problem.solution[: int(share * len(problem.solution))]
    found = check(problem.question, cut)
    assert found.verdict == "incorrect" and found.wrong_line is not None
    whole = problem.solution.split("\n")
    assert cut.split("\n")[: found.wrong_line] == whole[: found.wrong_line]
    assert found.missing_skill == problem.skills[found.wrong_line]


@settings(max_examples=300, deadline=None)
@given(text=st.text() | st.text(alphabet="0123456789+-*/%=<>r;:->it ,?\nad{}"), seed=st.integers(0, 50))
def test_no_text_makes_the_checker_raise(text: str, seed: int) -> None:
    problem = draw(Random(seed), EVEN, "pool")
    assert check(problem.question, text).verdict == "incorrect"
    assert isinstance(needed_skills(text), tuple)
    assert isinstance(grade(problem.answer, text), bool)
    assert isinstance(grade(text, problem.solution), bool)


@pytest.mark.parametrize(
    "question",
    [
        "",
        "?",
        "add it and 5 ?",
        "divide 40 by 0 ?",
        "5 minus 9 ?",
        "add 5 and 1234567 ?",
        "the mean of 5 and 6 ?",
        "add 1 and 2 , then add 3 and 4 ?",
        "add fractions 1 / 2 and 1 / 3 , then it plus 5 ?",
        " ; first ",
        "add ١ and 2 ?",
        "x" * 5000,
    ],
)
def test_what_is_no_question_of_this_world_needs_no_skill(question: str) -> None:
    assert needed_skills(question) == ()
    with pytest.raises(ValueError, match="needed_skills"):
        check(question, "add:1+1=2->2")


def test_grading_looks_at_the_final_answer_only() -> None:
    assert grade("62", "sub:nonsense->062") and not grade("62", "sub:7-5=2;14-8=6;3-1-2=0->63")
    assert final_answer("add:1+1=2->2\n\n") == "2" and final_answer("add:1+1=2") is None
    assert grade("7/6", "fraction:1+1=2->07/6") and not grade("7/6", "fraction:1+1=2->7")
