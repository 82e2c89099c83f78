"""Checks a student's worked answer step by step; knows only the question's text and the answer's.

Right variants are accepted: commuted operands, zero terms left out or written, leading zeros, spaces, and any
order of steps in which none comes before a step it depends on. The first line that is not right names the
missing skill.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from loop.tasks.world.digits import Worked
from loop.tasks.world.questions import Link, parse, work

_LINE = re.compile(r"([a-z]+):([^:]*)->([0-9]{1,9}(?:/[0-9]{1,9})?)")
_SIDES = re.compile(r"([0-9+*/%-]{1,40})(=|<|>)([0-9r]{1,20})")
MAX_ANSWER = 4000


@dataclass(frozen=True)
class Check:
    """What a check found: the first wrong line (0-based) with its text, the skill it needed, and the final
    answer if any."""

    verdict: Literal["correct", "incorrect"]
    wrong_line: int | None = None
    wrong_text: str = ""
    missing_skill: str | None = None
    answer: str | None = None


def needed_skills(question: str) -> tuple[str, ...]:
    """The skills a question needs, in order of use; empty for text that is not a question of this world."""
    return tuple(link.skill for link in parse(question) or ())


def final_answer(answer_text: str) -> str | None:
    """The result of the last line, without leading zeros; None when there is none."""
    lines = _lines(answer_text)
    match = _LINE.fullmatch(lines[-1]) if lines else None
    return _plain(match[3]) if match else None


def grade(expected_answer: str, answer_text: str) -> bool:
    """Whether the final answer is right, however it was reached."""
    return final_answer(answer_text) == _plain(expected_answer)


def check(question: str, answer_text: str) -> Check:
    """Check an answer line by line.

    Raises ValueError when the question is none of this world's; `needed_skills` tells beforehand.
    """
    links = parse(question)
    if links is None:
        raise ValueError("not a question of the demo's world: check needed_skills(question) first")
    lines = _lines(answer_text)
    answer = final_answer(answer_text)
    for index, link in enumerate(links):
        text = lines[index] if index < len(lines) else ""
        if not _line_right(link, text):
            return Check("incorrect", index, text, link.skill, answer)
    if len(lines) > len(links):
        return Check("incorrect", len(links), lines[len(links)], links[-1].skill, answer)
    return Check("correct", answer=answer)


def _lines(text: str) -> list[str]:
    rows = ("".join(row.split()) for row in text[:MAX_ANSWER].lower().split("\n"))
    return [row for row in rows if row]


def _plain(number: str) -> str:
    return "/".join(part.lstrip("0") or "0" for part in number.strip().split("/"))


def _line_right(link: Link, text: str) -> bool:
    match = _LINE.fullmatch(text)
    if match is None or match[1] != link.skill:
        return False
    expected = work(link)
    return _plain(match[3]) == expected.result and _steps_right(expected, match[2].split(";"))


def _steps_right(expected: Worked, texts: list[str]) -> bool:
    """Whether `texts` are the expected steps in an order that respects what each needs."""
    if len(texts) != len(expected.steps):
        return False
    wanted = [_canonical(step.text) for step in expected.steps]
    done: set[int] = set()
    for text in texts:
        step_text = _canonical(text)
        ready = (
            i
            for i, want in enumerate(wanted)
            if i not in done and want == step_text and _ready(expected, i, done)
        )
        index = next(ready, None)
        if index is None:
            return False
        done.add(index)
    return True


def _ready(expected: Worked, index: int, done: set[int]) -> bool:
    step = expected.steps[index]
    return all(earlier in done for earlier in range(step.floor)) and (not step.chained or index - 1 in done)


def _canonical(step: str) -> tuple[object, ...] | None:
    """A form in which equal steps are equal: numbers plain, commuting operands sorted, zero terms dropped."""
    match = _SIDES.fullmatch(step)
    if match is None:
        return None
    left, sign, right = match.groups()
    if sign != "=" or left.isdigit():
        pair = (left, right) if sign != "<" else (right, left)
        return ("compare", sign == "=", *map(_plain, pair))
    first, *rest = left.split("-")
    taken = sorted(_plain(term) for term in rest if _plain(term) != "0")
    terms = sorted(term for term in map(_term, first.split("+")) if term != ("0",))
    return ("fact", tuple(terms), tuple(taken), tuple(_plain(part) for part in right.split("r")))


def _term(text: str) -> tuple[str, ...]:
    return tuple(sorted(_plain(factor) for factor in text.split("*")))
