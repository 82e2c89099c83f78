"""Replies of the model, checked again by us whatever the server promised: a reply is a value of these types
or it is rejected.

`Rejected` carries a reason in our own words, never a text of the model or a student: it is sent back in the
one repair turn.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from agent.catalog import Skill
from agent.items import PoolItem
from graphs.chat.delimit import quoted
from graphs.teacher import Diagnosis, Solution
from streams.events import AnswerVerdict

MAX_NAME_CHARS = 80
_NAME = re.compile(r"[^\W_][\w \-,.'’()/&+]*")


class Rejected(Exception):
    """A reply that cannot be used; the message says which rule it breaks."""


class _Raw(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Name(_Raw):
    skill: str


class _Skill(_Raw):
    name: str
    description: str


class _Skills(_Raw):
    skills: list[_Skill]


class _Labels(_Raw):
    skills: list[str]


class _Diagnosis(_Raw):
    verdict: str
    evidence: str
    missing: list[str]


class _Questions(_Raw):
    questions: list[str]


class _Solution(_Raw):
    steps: list[str]
    answer: str


_R = TypeVar("_R", bound=_Raw)
T = TypeVar("T")
Check = Callable[[str], T]
"""From the text of a reply to a checked value. Raises `Rejected`."""


def _parse(kind: type[_R], text: str) -> _R:
    """The whole text must be the JSON object: nothing is repaired, a truncated reply is not completed."""
    try:
        return kind.model_validate_json(text.strip())
    except ValidationError:
        raise Rejected("it is not one complete JSON object of the given schema") from None


def skill_name(text: str) -> str:
    """A skill name in its normal form.

    >>> skill_name('{"skill": " Prime   Factorization "}')
    'prime factorization'
    """
    return _name(_parse(_Name, text).skill)


def _name(raw: str) -> str:
    name = " ".join(raw.casefold().replace("_", " ").split())
    if not 1 < len(name) <= MAX_NAME_CHARS or not _NAME.fullmatch(name):
        raise Rejected(
            f"a skill name is a short noun phrase of at most {MAX_NAME_CHARS} characters without symbols"
        )
    return name


def clusters(at_most: int) -> Check[tuple[Skill, ...]]:
    """One to `at_most` skills, each name once."""

    def check(text: str) -> tuple[Skill, ...]:
        raw = _parse(_Skills, text).skills
        skills = tuple(
            Skill(name=_name(part.name), description=" ".join(part.description.split())[:500]) for part in raw
        )
        if not 0 < len(skills) <= at_most:
            raise Rejected(f"give 1 to {at_most} skills")
        if len({skill.name for skill in skills}) < len(skills):
            raise Rejected("a skill name comes twice")
        return skills

    return check


def labels(skills: Collection[str]) -> Check[tuple[str, ...]]:
    """Skills of the list, each once, in the order of the reply."""

    def check(text: str) -> tuple[str, ...]:
        return _known(_parse(_Labels, text).skills, skills)

    return check


def _known(names: Sequence[str], skills: Collection[str]) -> tuple[str, ...]:
    if any(name not in skills for name in names):
        raise Rejected("it names a skill that is not in the list; copy names exactly from the list")
    return tuple(dict.fromkeys(names))


def diagnosis(answer: str, skills: Collection[str]) -> Check[Diagnosis]:
    """A verdict with verbatim evidence and listed skills. A blank answer needs no evidence: there is nothing
    to quote."""

    def check(text: str) -> Diagnosis:
        raw = _parse(_Diagnosis, text)
        verdict = _verdict(raw.verdict)
        if verdict == "correct":
            if raw.missing:
                raise Rejected("a correct answer has no missing skills")
            return Diagnosis(verdict="correct")
        missing = _known(raw.missing, skills)
        if not missing:
            raise Rejected("an incorrect answer needs at least one missing skill of the list")
        evidence = quoted(answer, raw.evidence)
        if evidence is None and answer.strip():
            raise Rejected("the evidence is not copied from the student's answer character by character")
        return Diagnosis(verdict="incorrect", evidence=evidence or "", missing=missing)

    return check


def _verdict(raw: str) -> AnswerVerdict:
    if raw == "correct":
        return "correct"
    if raw == "incorrect":
        return "incorrect"
    raise Rejected('the verdict is neither "correct" nor "incorrect"')


def questions(references: Sequence[PoolItem], count: int) -> Check[tuple[str, ...]]:
    """At most `count` distinct questions, none of them a reference."""

    def check(text: str) -> tuple[str, ...]:
        known = {_squeezed(item.question) for item in references}
        new = {
            _squeezed(question): question.strip()
            for question in _parse(_Questions, text).questions
            if _squeezed(question) not in known
        }
        distinct = tuple(question for question in new.values() if question)[:count]
        if not distinct:
            raise Rejected("it has no new question")
        return distinct

    return check


def _squeezed(text: str) -> str:
    return " ".join(text.casefold().split())


def solution(text: str) -> Solution | None:
    r"""Steps joined by blank lines (as process reward models expect them), the final answer boxed at the end;
    `None`: declined.

    >>> solution('{"steps": ["$2+2=4$."], "answer": "4"}').text
    '$2+2=4$.\n\nThe final answer is $\\boxed{4}$.'
    """
    raw = _parse(_Solution, text)
    steps = [re.sub(r"\n\s*\n+", "\n", step.strip()) for step in raw.steps if step.strip()]
    answer = raw.answer.strip().strip("$").strip()
    if not steps and not answer:
        return None
    if not steps or not answer:
        raise Rejected("a solution has at least one step and a final answer")
    if "\\boxed" not in steps[-1]:
        steps.append(f"The final answer is $\\boxed{{{answer}}}$.")
    return Solution(text="\n\n".join(steps), answer=answer)
