"""Word problems of arithmetic, read well enough for a scripted teacher: which operations a question asks for,
and what comes out. No language model: signs between numbers, else cue words.

>>> solve("Ann has 3 boxes of 4 pears and buys 2 more. How many pears does she have?")
Fraction(14, 1)
>>> operations("Ann has 12 pears and shares them equally among 4 friends. How many does each get?")
('division',)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction

Operation = str
_NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?![\w]|\.\d)")
_BETWEEN = r"\d+(?:\.\d+)?"
_EXPRESSION = re.compile(rf"{_BETWEEN}(?:\s*[-+*/]\s*{_BETWEEN})+")
_SIGNS = {
    "plus": "+", "added to": "+", "minus": "-", "times": "*", "multiplied by": "*", "divided by": "/",
    "\u00d7": "*", "\u00f7": "/", "\\times": "*", "\\div": "/", "\\cdot": "*",
}  # fmt: skip
_OF_SIGN = {"+": "addition", "-": "subtraction", "*": "multiplication", "/": "division"}
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
)
_LEADS = {
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
    """The numbers of a question, each with how it joins what stands before (the first: by addition)."""
    text = question.casefold()
    for words, sign in _SIGNS.items():
        text = text.replace(words, sign)
    written = _EXPRESSION.search(text)
    if written:
        return list(_written(written[0]))
    numbers = list(_NUMBER.finditer(text))
    steps = [("addition", Fraction(number[0])) for number in numbers[:1]]
    ends = [*(number.start() for number in numbers[2:]), len(text)]
    for before, number, end in zip(numbers, numbers[1:], ends, strict=False):
        cued = _cued(text[before.end() : number.start()], text[number.end() : end])
        steps.append((cued, Fraction(number[0])))
    leads = (
        [operation for word, operation in _LEADS.items() if word in text[: numbers[0].start()]]
        if steps
        else []
    )
    return [steps[0], (leads[0], steps[1][1]), *steps[2:]] if leads and len(steps) == 2 else steps


def _written(expression: str) -> Iterator[tuple[Operation, Fraction]]:
    for sign, number in re.findall(r"([-+*/]?)\s*(\d+(?:\.\d+)?)", expression):
        yield _OF_SIGN.get(sign, "addition"), Fraction(number)


def _cued(before: str, after: str) -> Operation:
    """The operation that the words around a number ask for; without a cue, addition."""
    for operation, cue in _CUES:
        if cue.search(before) or ((operation != "multiplication" or "each" in after) and cue.search(after)):
            return operation
    return "addition"


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
