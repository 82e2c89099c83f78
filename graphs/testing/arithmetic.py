"""Word problems of arithmetic, read well enough for a scripted teacher: which operations a question asks for,
and what comes out. No language model: signs between numbers, else a cue word for each number. What it cannot
read it leaves alone (None): brackets, percents, thousands separators, comparisons, numbers without a cue.

>>> solve("Ann has 3 boxes of 4 pears and buys 2 more. How many pears does she have?")
Fraction(14, 1)
>>> operations("Ann has 12 pears and shares them equally among 4 friends. How many does each get?")
('division',)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from itertools import pairwise

Operation = str
_NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?![\w]|\.\d)")
_BETWEEN = r"\d+(?:\.\d+)?"
_EXPRESSION = re.compile(rf"{_BETWEEN}(?:\s*[-+*/]\s*{_BETWEEN})+")
_SIGNS = {
    "plus": "+", "added to": "+", "minus": "-", "times": "*", "multiplied by": "*", "divided by": "/",
    "\u00d7": "*", "\u00f7": "/", "\\times": "*", "\\div": "/", "\\cdot": "*",
}  # fmt: skip
_OF_SIGN = {"+": "addition", "-": "subtraction", "*": "multiplication", "/": "division"}
_UNREAD = re.compile(
    r"[()\[\]{}%^]|\d,\d|\b(percent|half|twice|double|triple|dozen|squared?|cubed?|average|remainder|equal)\b"
    r"|\b(more|less|\w+er) than\b"
)
_CUES: Sequence[tuple[Operation, re.Pattern[str]]] = (
    ("division", re.compile(r"\b(shar\w*|divid\w*|split\w*|equally|quotient)\b")),
    ("multiplication", re.compile(r"\b(each|every|per|product|times)\b|\b[a-z]+ (of|with|holding)\s*$")),
    (
        "subtraction",
        re.compile(
            r"\b(gives?|gave|eats?|ate|loses?|lost|sells?|sold|uses?|used|spends?|spent|fewer|less|left"
            r"|remain\w*|takes?|away|breaks?|broke|difference|than)\b"
        ),
    ),
    (
        "addition",
        re.compile(
            r"\b(more|another|adds?|added|buys?|bought|gets?|got|gains?|gained|finds?|found|receives?|received"
            r"|picks?|picked|joins?|joined|earns?|earned|sum|total|altogether|together|in all|combined)\b"
        ),
    ),
)
_LEADS = {
    "sum": "addition",
    "product": "multiplication",
    "each": "multiplication",
    "difference": "subtraction",
    "quotient": "division",
}
"""Cues that may also stand before the first of two numbers."""
_APPLY: dict[Operation, Callable[[Fraction, Fraction], Fraction]] = {
    "addition": lambda a, b: a + b,
    "subtraction": lambda a, b: a - b,
    "multiplication": lambda a, b: a * b,
    "division": lambda a, b: a / b,
}
_NAMED = {
    "addition": ("add", "sum", "plus"),
    "subtraction": ("subtract", "differ", "minus", "take away"),
    "multiplication": ("multipl", "product", "times"),
    "division": ("divi", "quotient", "shar"),
}


def solve(question: str) -> Fraction | None:
    """The answer; None where the question is not one of arithmetic."""
    steps = _steps(question)
    if len(steps) < 2:
        return None
    try:
        terms = _without_products(steps)
        value = terms[0][1]
        for operation, number in terms[1:]:
            value = _APPLY[operation](value, number)
    except ZeroDivisionError:
        return None
    return value


def operations(question: str) -> tuple[Operation, ...]:
    """The operations that the question asks for, each once, in their order."""
    return tuple(dict.fromkeys(operation for operation, _ in _steps(question)[1:]))


def skills(question: str, names: Sequence[str]) -> list[str]:
    """Those of some skills that are named after an operation which the question asks for.

    >>> skills("What is 3 * 4?", ["adding", "multiplication tables"])
    ['multiplication tables']
    """
    words = [word for operation in operations(question) for word in _NAMED[operation]]
    return [name for name in names if any(word in name.casefold() for word in words)]


def varied(question: str, draw: Callable[[int, int], int]) -> str:
    """The question with other numbers of about the same size; `draw(low, high)` gives one, both included."""

    def another(number: re.Match[str]) -> str:
        digits = len(number[0])
        return str(draw(1 if digits == 1 else 10 ** (digits - 1), 10**digits - 1))

    return re.sub(r"\d+", another, question)


def last_number(text: str) -> Fraction | None:
    """The last number of an answer: where its result stands."""
    numbers = re.findall(r"-?\d+(?:/\d+|\.\d+)?", text)
    try:
        return Fraction(numbers[-1]) if numbers else None
    except ZeroDivisionError:
        return None


def _steps(question: str) -> list[tuple[Operation, Fraction]]:
    """The numbers of a question, each with how it joins what stands before (the first: by addition). None at
    all where the question cannot be read."""
    text = question.casefold()
    for words, sign in _SIGNS.items():
        text = text.replace(words, sign)
    numbers = list(_NUMBER.finditer(text))
    if not numbers or _UNREAD.search(text):
        return []
    written = _EXPRESSION.search(text)
    if written:
        steps = list(_written(written[0]))
        before = text[: written.start()].rstrip()
        return [] if len(steps) < len(numbers) or before.endswith(tuple(_OF_SIGN)) else steps
    return _told(text, numbers)


def _written(expression: str) -> Iterator[tuple[Operation, Fraction]]:
    for sign, number in re.findall(r"([-+*/]?)\s*(\d+(?:\.\d+)?)", expression):
        yield _OF_SIGN.get(sign, "addition"), Fraction(number)


def _told(text: str, numbers: Sequence[re.Match[str]]) -> list[tuple[Operation, Fraction]]:
    """The steps of a text without signs: each number needs a cue before it, or one after it that the next
    number does not need."""
    steps = [("addition", Fraction(numbers[0][0]))]
    between = [text[a.end() : b.start()] for a, b in pairwise(numbers)] + [text[numbers[-1].end() :]]
    lead = next((name for word, name in _LEADS.items() if word in text[: numbers[0].start()]), None)
    for place, number in enumerate(numbers[1:]):
        cued = lead if lead and len(numbers) == 2 else _cued(between[place])
        if cued is None:
            cued, between[place + 1] = _cued(between[place + 1], behind=True), ""
        if cued is None:
            return []
        steps.append((cued, Fraction(number[0])))
    return steps


def _cued(words: str, behind: bool = False) -> Operation | None:
    """The operation that the words before a number, or `behind` it, ask for."""
    for operation, cue in _CUES:
        if (not behind or operation != "multiplication" or "each" in words) and cue.search(words):
            return operation
    return None


def _without_products(steps: Sequence[tuple[Operation, Fraction]]) -> list[tuple[Operation, Fraction]]:
    """Multiplication and division, done before the rest."""
    terms = [steps[0]]
    for operation, number in steps[1:]:
        if operation in ("multiplication", "division"):
            sign, value = terms[-1]
            terms[-1] = (sign, _APPLY[operation](value, number))
        else:
            terms.append((operation, number))
    return terms
