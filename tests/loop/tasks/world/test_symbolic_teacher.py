"""The symbolic teacher: right when asked to be, wrong at the rates asked for, repeatable always."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphs.teacher import Teacher
from loop.tasks.world.checker import needed_skills
from loop.tasks.world.questions import parse
from loop.tasks.world.teacher import SymbolicTeacher
from loop.tasks.world.world import ORIGINAL, RARE, SKILLS, Problem, check, draw, pool, split_of


def problems(count: int) -> list[Problem]:
    rng = Random(5)
    return [draw(rng, ORIGINAL, "traffic") for _ in range(count)]


def broken(problem: Problem) -> str:
    return problem.solution.split("\n")[0] + "1"


def test_an_exact_teacher_labels_and_diagnoses_exactly() -> None:
    teacher: Teacher = SymbolicTeacher()
    for problem in problems(200):
        needed = teacher.label(problem.question, SKILLS).skills
        assert needed == tuple(dict.fromkeys(problem.skills))
        assert teacher.diagnose(problem.question, problem.solution, needed, SKILLS).verdict == "correct"
        wrong = teacher.diagnose(problem.question, broken(problem), needed, SKILLS)
        assert (wrong.verdict, wrong.missing) == ("incorrect", problem.skills[:1])
        assert wrong.usage.calls == 1 and wrong.usage.prompt_tokens > 0 and wrong.evidence


def test_labels_stay_within_the_catalog() -> None:
    assert SymbolicTeacher().label("first add 2 and 3 ; next it times 4 ?", ("mul", "left")).skills == (
        "mul",
    )


def test_wrong_and_withheld_diagnoses_come_at_the_rates_asked() -> None:
    teacher = SymbolicTeacher(error_rate=0.15, abstain_rate=0.1, seed=3)
    found = [(p, teacher.diagnose(p.question, broken(p), p.skills, SKILLS)) for p in problems(3000)]
    told = [(p, d) for p, d in found if d.verdict == "incorrect"]
    assert 1 - len(told) / len(found) == pytest.approx(0.1, abs=0.02)
    assert sum(d.missing != p.skills[:1] for p, d in told) / len(told) == pytest.approx(0.15, abs=0.02)
    withheld = sum(not teacher.label(p.question, SKILLS).skills for p in problems(3000))
    assert withheld / 3000 == pytest.approx(0.1, abs=0.02)


def test_replies_do_not_depend_on_order_or_threads() -> None:
    teacher = SymbolicTeacher(error_rate=0.3, abstain_rate=0.2, solve_error_rate=0.2, seed=1)
    asked = problems(100)

    def ask(problem: Problem) -> object:
        diagnosis = teacher.diagnose(problem.question, broken(problem), problem.skills, SKILLS)
        return teacher.label(problem.question, SKILLS), diagnosis, teacher.solve(problem.question, 3, 7)

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(ask, asked)) == list(reversed([ask(problem) for problem in reversed(asked)]))


@pytest.mark.parametrize("skill", RARE)
def test_written_questions_are_new_need_the_skill_and_keep_off_the_test_operands(skill: str) -> None:
    teacher, references = SymbolicTeacher(), pool(0, {skill: 10})
    questions = teacher.write(skill, references, 60, seed=0).questions
    assert len(set(questions)) == 60 and not {item.question for item in references} & set(questions)
    for question in questions:
        links = parse(question)
        assert links is not None and skill in {link.skill for link in links}
        assert {split_of(link.skill, link.args) for link in links} == {"pool"}
    assert teacher.write(skill, references, 60, seed=0).questions == questions
    assert len(set(questions) & set(teacher.write(skill, references, 60, seed=1).questions)) < 10


def test_without_a_skill_questions_need_what_the_references_need() -> None:
    references = pool(3, {"left": 6, "mod": 4}, chain_share=0.5)
    written = SymbolicTeacher().write("", references, 30, seed=1).questions
    wanted = {needed_skills(item.question) for item in references}
    assert len(set(written)) == 30 and {needed_skills(question) for question in written} <= wanted
    assert not set(written) & {item.question for item in references}
    assert SymbolicTeacher().write("", [], 2, seed=1).questions == ()


def test_solutions_are_right_except_at_the_rate_asked() -> None:
    teacher = SymbolicTeacher(solve_error_rate=0.2)
    solved = [(p, one) for p in problems(600) for one in teacher.solve(p.question, 3, 0).solutions]
    wrong = [check(p.question, one.text).verdict == "incorrect" for p, one in solved]
    assert sum(wrong) / len(wrong) == pytest.approx(0.2, abs=0.03)
    assert wrong == [one.answer != p.answer for p, one in solved]


@settings(max_examples=100, deadline=None)
@given(question=st.text(), answer=st.text())
def test_text_of_another_world_is_abstained_from(question: str, answer: str) -> None:
    teacher = SymbolicTeacher(error_rate=0.5, solve_error_rate=0.5)
    assert teacher.label(question, SKILLS).skills == ()
    assert teacher.diagnose(question, answer, (), SKILLS).verdict == "abstained"
    assert teacher.solve(question, 2, 0).solutions == ()
    assert teacher.write("juggling", (), 3, 0).questions == ()
