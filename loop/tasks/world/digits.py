"""Digit-level arithmetic: the steps from which every worked line of the demo's world is made."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """One step of a worked line. It needs every step with an index below `floor`, and the previous step if
    `chained`."""

    text: str
    floor: int = 0
    chained: bool = False


@dataclass(frozen=True)
class Worked:
    """A worked line: its steps in the usual order, and what comes out."""

    steps: tuple[Step, ...]
    result: str


def digits(number: int) -> list[int]:
    """The decimal digits, least significant first.

    >>> digits(347)
    [7, 4, 3]
    """
    return [int(c) for c in reversed(str(number))]


def _padded(a: int, b: int) -> list[tuple[int, int]]:
    x, y = digits(a), digits(b)
    width = max(len(x), len(y))
    return list(zip(x + [0] * (width - len(x)), y + [0] * (width - len(y)), strict=True))


def add_steps(a: int, b: int, floor: int = 0) -> list[Step]:
    """Column addition, least significant digit first.

    >>> [step.text for step in add_steps(347, 85)]
    ['7+5=12', '4+8+1=13', '3+0+1=4']
    """
    steps: list[Step] = []
    carry = 0
    for x, y in _padded(a, b):
        total = x + y + carry
        steps.append(Step(f"{x}+{y}{'+1' if carry else ''}={total}", floor, bool(carry)))
        carry = total // 10
    return steps


def sub_steps(a: int, b: int, floor: int = 0) -> list[Step]:
    """Column subtraction with borrowing; needs a >= b.

    >>> [step.text for step in sub_steps(347, 85)]
    ['7-5=2', '14-8=6', '3-0-1=2']
    """
    steps: list[Step] = []
    borrow = 0
    for x, y in _padded(a, b):
        lent = 10 if x < y + borrow else 0
        steps.append(
            Step(f"{x + lent}-{y}{'-1' if borrow else ''}={x + lent - y - borrow}", floor, bool(borrow))
        )
        borrow = 1 if lent else 0
    return steps


def mul_steps(a: int, digit: int, floor: int = 0, carry: int = 0) -> list[Step]:
    """Multiplication by one digit, starting from a carry.

    >>> [step.text for step in mul_steps(347, 5)]
    ['7*5=35', '4*5+3=23', '3*5+2=17']
    """
    steps: list[Step] = []
    for x in digits(a):
        total = x * digit + carry
        steps.append(Step(f"{x}*{digit}{f'+{carry}' if carry else ''}={total}", floor, bool(carry and steps)))
        carry = total // 10
    return steps


def div_steps(a: int, digit: int, floor: int = 0) -> list[Step]:
    """Long division by one digit, most significant digit first.

    >>> [step.text for step in div_steps(347, 5)]
    ['3/5=0r3', '34/5=6r4', '47/5=9r2']
    """
    steps: list[Step] = []
    rest = 0
    for x in reversed(digits(a)):
        part = 10 * rest + x
        steps.append(Step(f"{part}/{digit}={part // digit}r{part % digit}", floor, bool(steps)))
        rest = part % digit
    return steps


def max_steps(a: int, b: int) -> list[Step]:
    """Comparison from the most significant digit down to the first difference.

    >>> [step.text for step in max_steps(347, 385)]
    ['3=3', '4<8']
    """
    steps: list[Step] = []
    for x, y in reversed(_padded(a, b)):
        steps.append(Step(f"{x}{'>' if x > y else '<' if x < y else '='}{y}", 0, bool(steps)))
        if x != y:
            break
    return steps
