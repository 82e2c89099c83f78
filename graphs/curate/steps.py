"""The teacher's part of STAT-Syn: write new questions, solve each several times, keep what agrees (arXiv
2510.10023, section 3.3).

The steps work on plain dictionaries, the form in which the curate graph checkpoints them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from typing_extensions import TypedDict

from agent.budget import Usage
from agent.chance import rank
from agent.items import PoolItem
from graphs.teacher import Teacher


class Prompt(TypedDict):
    """A request for `count` new questions of `skill`, shown the items `references`; `at` is its place in the
    plan."""

    at: int
    skill: str
    references: list[str]
    count: int
    seed: int


class Written(TypedDict):
    """What came back for one prompt."""

    at: int
    skill: str
    references: list[str]
    questions: list[str]
    usage: dict[str, float]


class Question(TypedDict):
    """One new question on its way; `at` is its place among all of them."""

    at: int
    text: str
    skill: str
    references: list[str]


class Answer(TypedDict):
    """One solution of a question."""

    text: str
    answer: str


class Solved(TypedDict):
    """The solutions of one question."""

    question: Question
    solutions: list[Answer]
    usage: dict[str, float]


def write(teacher: Teacher, pool: Mapping[str, PoolItem], prompt: Prompt) -> Written:
    """Ask for the questions of one prompt; more than were asked for are cut off, blank ones left out."""
    references = [pool[item_id] for item_id in prompt["references"]]
    reply = teacher.write(prompt["skill"], references, prompt["count"], prompt["seed"])
    questions = [text.strip() for text in reply.questions if text.strip()][: prompt["count"]]
    usage = reply.usage.model_dump()
    return Written(
        at=prompt["at"],
        skill=prompt["skill"],
        references=prompt["references"],
        questions=questions,
        usage=usage,
    )


def numbered(written: Sequence[Written]) -> list[Question]:
    """All new questions in the order of their prompts, whatever the order in which the prompts were
    answered."""
    questions: list[Question] = []
    for reply in sorted(written, key=lambda one: one["at"]):
        for text in reply["questions"]:
            questions.append(
                Question(at=len(questions), text=text, skill=reply["skill"], references=reply["references"])
            )
    return questions


def solve(teacher: Teacher, question: Question, count: int, seed: int) -> Solved:
    """Ask for independent solutions of one question. The seed depends on the text, not on its place."""
    reply = teacher.solve(question["text"], count, rank(seed, "solve", question["text"]) % 2**31)
    solutions = [Answer(text=one.text, answer=one.answer) for one in reply.solutions]
    return Solved(question=question, solutions=solutions, usage=reply.usage.model_dump())


def agreeing(solutions: Sequence[Answer], at_least: int, canonical: Callable[[str], str]) -> list[Answer]:
    """The solutions that share the commonest final answer, each text once; none when fewer than `at_least`
    agree, or on a tie.

    A solution without an answer or without text agrees with nobody.

    >>> three = [Answer(text="a", answer="4"), Answer(text="b", answer="5"), Answer(text="c", answer=" 4")]
    >>> [one["text"] for one in agreeing(three, 2, str.strip)]
    ['a', 'c']
    """
    answers = [canonical(one["answer"]) if one["text"].strip() else "" for one in solutions]
    ranking = Counter(answer for answer in answers if answer).most_common(2)
    if not ranking or ranking[0][1] < at_least or (len(ranking) > 1 and ranking[0][1] == ranking[1][1]):
        return []
    same = [one for one, answer in zip(solutions, answers, strict=True) if answer == ranking[0][0]]
    return list({one["text"]: one for one in same}.values())


def total(usages: Sequence[Mapping[str, float]]) -> Usage:
    """The sum of checkpointed usages."""
    return sum((Usage.model_validate(usage) for usage in usages), Usage())
