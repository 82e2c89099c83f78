"""The language of the demo's questions: links of skills, their text, and the way back from text to links."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from loop.tasks.world.digits import Worked
from loop.tasks.world.skills import BY_NAME, TABLE, Args

MAX_LINKS = 5
MAX_CHARACTERS = 1000
LARGEST = 10**6

ORDERS = ("then", "first")
UNSEEN_ORDER = "reverse"


@dataclass(frozen=True, slots=True)
class Link:
    """One use of a skill. `args` holds every operand; with `it` the first one is the result of the link
    before.

    `form` counts the skill's forms; -1 is its unseen form.
    """

    skill: str
    args: Args
    form: int
    it: bool = False


def work(link: Link) -> Worked:
    """The worked line of a link."""
    return BY_NAME[link.skill].work(link.args)


def solve(links: Sequence[Link]) -> tuple[str, str]:
    """The worked solution, one line per link, and its final answer."""
    lines = [(link.skill, work(link)) for link in links]
    text = "\n".join(
        f"{name}:{';'.join(step.text for step in line.steps)}->{line.result}" for name, line in lines
    )
    return text, lines[-1][1].result


def render(links: Sequence[Link], order: str = "then") -> str:
    """The question in words; `order` is one of `ORDERS` or `UNSEEN_ORDER` (of two links only)."""
    clauses = [_clause(link) for link in links]
    if len(clauses) == 1:
        return f"{clauses[0]} ?"
    if order == "first":
        return f"first {' ; next '.join(clauses)} ?"
    if order == UNSEEN_ORDER:
        return f"{clauses[1]} ; first {clauses[0]} ?"
    return f"{' , then '.join(clauses)} ?"


def parse(question: str) -> tuple[Link, ...] | None:
    """The links a question asks for, or None for text that is not a question of this world or has no answer
    in it."""
    if len(question) > MAX_CHARACTERS:
        return None
    text = " ".join(question.lower().replace("?", " ").split())
    clauses = _split(text)
    if len(clauses) > MAX_LINKS:
        return None
    links: list[Link] = []
    for clause in clauses:
        before = links[-1] if links else None
        link = _read(clause, before)
        if link is None:
            return None
        links.append(link)
    return tuple(links)


def _clause(link: Link) -> str:
    skill = BY_NAME[link.skill]
    template = skill.forms[link.form] if link.form >= 0 else skill.unseen_form or skill.forms[0]
    words = dict(zip("abcd", map(str, link.args), strict=False))
    return template.format(**{**words, "a": "it"} if link.it else words)


def _split(text: str) -> list[str]:
    if text.startswith("first ") and " ; next " in text:
        return text.removeprefix("first ").split(" ; next ")
    if " ; first " in text:
        second, _, first = text.partition(" ; first ")
        return [first, second]
    return text.split(" , then ")


def _pattern(template: str) -> re.Pattern[str]:
    text = re.escape(template).replace(r"\{", "{").replace(r"\}", "}").replace(r"\ ", " ")
    for name in "abcd":
        text = text.replace(f"{{{name}}}", rf"(?P<{name}>{'it|' if name == 'a' else ''}[0-9]{{1,6}})")
    return re.compile(text)


_PATTERNS = tuple(
    (skill.name, form, _pattern(template))
    for skill in TABLE
    for form, template in [*enumerate(skill.forms), *([(-1, skill.unseen_form)] if skill.unseen_form else [])]
)


def _read(clause: str, before: Link | None) -> Link | None:
    for name, form, pattern in _PATTERNS:
        match = pattern.fullmatch(clause)
        if match is None:
            continue
        words = match.groupdict()
        it = words["a"] == "it"
        if it != (before is not None):
            return None
        if before is not None:
            if not BY_NAME[name].chains or not BY_NAME[before.skill].chains:
                return None
            words["a"] = work(before).result
        args = tuple(int(words[letter]) for letter in sorted(words))
        return Link(name, args, form, it) if max(args) < LARGEST and BY_NAME[name].valid(args) else None
    return None
