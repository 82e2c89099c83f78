"""What the teacher does for a data set: write questions, solve them, rewrite solutions; and which solutions
count (arXiv 2510.10023, section 3.3).

The steps work on plain dictionaries, the form in which the curate graph checkpoints them.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from typing_extensions import TypedDict

from agent.budget import Usage
from agent.items import PoolItem
from graphs.filters.final_answers import canonical
from graphs.teacher import STOPS, Solution, Teacher

log = logging.getLogger(__name__)
Kind = Literal["write", "rewrite", "solve"]
Grade = Callable[[str, str], bool | None]


class TeacherCall(TypedDict):
    """One call of the teacher; `text` is the skill to write for, the item to rewrite or the question to
    solve, `at` its place among the calls of its kind."""

    at: int
    text: str
    references: list[str]
    count: int
    seed: int


class Reply(TypedDict):
    """What came of a call: questions, or solutions with the final answer of each; nothing, when the teacher
    abstained or failed at this one."""

    at: int
    text: str
    texts: list[str]
    answers: list[str]
    usage: dict[str, float]


def ask(kind: Kind, teacher: Teacher, items: Mapping[str, PoolItem], call: TeacherCall) -> Reply:
    """Make one call. An error of its own costs this call only; what says nothing about it
    (`graphs.teacher.STOPS`) is raised."""
    try:
        texts, answers, usage = _asked(kind, teacher, items, call)
    except STOPS:
        raise
    except Exception:
        log.warning("%s failed for %.80r", kind, call["text"], exc_info=True)
        texts, answers, usage = [], [], Usage()
    return Reply(at=call["at"], text=call["text"], texts=texts, answers=answers, usage=usage.model_dump())


def _asked(
    kind: Kind, teacher: Teacher, items: Mapping[str, PoolItem], call: TeacherCall
) -> tuple[list[str], list[str], Usage]:
    if kind == "write":
        references = [items[item_id] for item_id in call["references"]]
        written = teacher.write(call["text"], references, call["count"], call["seed"])
        questions = [text.strip() for text in written.questions if text.strip()]
        return questions[: call["count"]], [], written.usage
    if kind == "rewrite":
        reply = teacher.rewrite(items[call["text"]], call["count"], call["seed"])
    else:
        reply = teacher.solve(call["text"], call["count"], call["seed"])
    worked = reply.solutions
    return [solution.text for solution in worked], [solution.answer for solution in worked], reply.usage


def solutions(reply: Reply) -> list[Solution]:
    """The solutions of a reply."""
    return [
        Solution(text=text, answer=answer)
        for text, answer in zip(reply["texts"], reply["answers"], strict=True)
    ]


def ends_in(expected: str, solution: Solution, grade: Grade) -> bool:
    """Whether a solution ends in the expected answer: in the same form, or equal by the task's own
    grading."""
    if canonical(expected) == canonical(solution.answer):
        return True
    return bool(grade(expected, solution.text))


def agreed(candidates: Sequence[Solution], at_least: int, grade: Grade) -> list[Solution]:
    """The solutions that share the commonest final answer; none when fewer than `at_least` agree, or on a
    tie.

    A solution without an answer or without text agrees with nobody.
    """
    groups: list[list[Solution]] = []
    for solution in candidates:
        if not solution.text.strip() or not canonical(solution.answer):
            continue
        same = next((group for group in groups if ends_in(group[0].answer, solution, grade)), None)
        if same is None:
            groups.append([solution])
        else:
            same.append(solution)
    groups.sort(key=len, reverse=True)
    if not groups or len(groups[0]) < at_least or (len(groups) > 1 and len(groups[0]) == len(groups[1])):
        return []
    return groups[0]


def agreeing(candidates: Sequence[Solution], at_least: int, grade: Grade) -> list[str]:
    r"""The texts of the solutions that agree (`agreed`), each once.

    >>> answers = ["\\frac{1}{2}", "5", "$\\dfrac{1}{2}$"]
    >>> agreeing([Solution(text=f"way {answer}", answer=answer) for answer in answers], 2, lambda *_: None)
    ['way \\frac{1}{2}', 'way $\\dfrac{1}{2}$']
    """
    return list(dict.fromkeys(solution.text for solution in agreed(candidates, at_least, grade)))


def rewritten(item: PoolItem, reply: Reply, grade: Grade, dropped: Counter[str]) -> list[str]:
    """The distinct new solutions of an item that end in its answer."""
    kept: dict[str, None] = {}
    for solution in solutions(reply):
        text = solution.text.strip()
        if item.answer and not ends_in(item.answer, solution, grade):
            dropped["rewritten-answer-changed"] += 1
        elif text in kept or text == item.solution.strip():
            dropped["rewritten-repeat"] += 1
        else:
            kept[text] = None
    dropped["rewriting failed"] += not reply["texts"]
    return list(kept)


def total(usages: Sequence[Mapping[str, float]]) -> Usage:
    """The sum of checkpointed usages."""
    return sum((Usage.model_validate(usage) for usage in usages), Usage())
