"""The skills of the demo's world: how each is asked, drawn, and worked digit by digit.

Every skill is worked in one line, `name:step;step;...->result`, in which operands are repeated and every step
is a fact of one or two digits (column addition, borrowing, multiplication by a digit, long division). Common
skills teach these facts; rare skills recombine them, so they can be learned from a few hundred examples. The
one exception is `mod`, which is asked for in a single step and stays stubborn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from loop.tasks.world.digits import Step, Worked, add_steps, div_steps, max_steps, mul_steps, sub_steps

Args = tuple[int, ...]


@dataclass(frozen=True)
class SkillRule:
    """One skill. `draw(rng, it)` gives operands (the first one fixed to `it` in a chain) or None when `it`
    does not suit.

    `unseen_form` is a word order that no training data shows; it measures generalization.
    """

    name: str
    description: str
    forms: tuple[str, ...]
    draw: Callable[[Random, int | None], Args | None]
    valid: Callable[[Args], bool]
    work: Callable[[Args], Worked]
    commutes: bool = False
    chains: bool = True
    unseen_form: str | None = None


def _line(steps: list[Step], result: int | str) -> Worked:
    return Worked(tuple(steps), str(result))


def _average(args: Args) -> Worked:
    a, b = args
    first = add_steps(a, b)
    return _line(first + div_steps(a + b, 2, len(first)), (a + b) // 2)


def _perimeter(args: Args) -> Worked:
    a, b = args
    first = add_steps(a, b)
    return _line(first + mul_steps(a + b, 2, len(first)), 2 * (a + b))


def _left(args: Args) -> Worked:
    a, b, c = args
    first = mul_steps(b, c)
    return _line(first + sub_steps(a, b * c, len(first)), a - b * c)


def _equation(args: Args) -> Worked:
    a, b, c = args
    first = sub_steps(a, b)
    return _line(first + div_steps(a - b, c, len(first)), (a - b) // c)


def _profit(args: Args) -> Worked:
    a, b, c = args
    first = sub_steps(a, b)
    return _line(first + mul_steps(a - b, c, len(first)), (a - b) * c)


def _bill(args: Args) -> Worked:
    a, b, c = args
    first = mul_steps(a, c)
    return _line(first + add_steps(a * c, b, len(first)), a * c + b)


def _total(args: Args) -> Worked:
    a, b, c = args
    first = add_steps(a, b)
    return _line(first + add_steps(a + b, c, len(first)), a + b + c)


def _fraction(args: Args) -> Worked:
    a, b, c, d = args
    products = [Step(f"{x}*{y}={x * y}") for x, y in ((a, d), (c, b))]
    sums = add_steps(a * d, c * b, 2)
    return _line([*products, *sums, Step(f"{b}*{d}={b * d}")], f"{a * d + c * b}/{b * d}")


def _number(rng: Random, low: int = 11, high: int = 999) -> int:
    """A number with two or three digits, each length equally likely where both are allowed."""
    return rng.randint(low, 99) if high <= 99 or rng.random() < 0.5 else rng.randint(max(low, 100), high)


def _two(rng: Random, it: int | None) -> Args:
    return (_number(rng) if it is None else it, _number(rng))


def _descending(rng: Random, it: int | None) -> Args | None:
    a, b = _two(rng, it)
    if it is None:
        return (max(a, b), min(a, b))
    return (a, rng.randint(11, a)) if a >= 11 else None


def _by_digit(rng: Random, it: int | None) -> Args:
    return (_number(rng) if it is None else it, rng.randint(2, 9))


def _weeks(rng: Random, it: int | None) -> Args:
    return (_number(rng) if it is None else it, rng.randint(1, 6))


def _modulo(rng: Random, it: int | None) -> Args:
    return (rng.randint(100, 999) if it is None else it, rng.randint(2, 9))


def _small_two(rng: Random, it: int | None) -> Args:
    return (_number(rng, high=99) if it is None else it, _number(rng, high=99))


def _even_two(rng: Random, it: int | None) -> Args:
    a, b = _small_two(rng, it)
    return (a, b if (a + b) % 2 == 0 else (b - 1 if b > 11 else b + 1))


def _small_three(rng: Random, it: int | None) -> Args:
    return (*_small_two(rng, it), _number(rng, high=99))


def _draw_left(rng: Random, it: int | None) -> Args | None:
    b, c = rng.randint(11, 99), rng.randint(2, 9)
    a = it if it is not None else b * c + rng.randint(1, 99)
    return (a, b, c) if a > b * c else None


def _draw_equation(rng: Random, it: int | None) -> Args | None:
    b, c, x = rng.randint(11, 99), rng.randint(2, 9), rng.randint(11, 99)
    if it is None:
        return (b + c * x, b, c)
    b = it - c * x
    return (it, b, c) if b >= 11 else None


def _draw_profit(rng: Random, it: int | None) -> Args | None:
    a, b, c = rng.randint(22, 99) if it is None else it, rng.randint(11, 99), rng.randint(2, 9)
    return (a, b, c) if a > b else None


def _draw_bill(rng: Random, it: int | None) -> Args:
    return (rng.randint(11, 99) if it is None else it, rng.randint(11, 99), rng.randint(2, 9))


def _draw_fraction(rng: Random, it: int | None) -> Args | None:
    return (
        None
        if it is not None
        else (rng.randint(1, 9), rng.randint(2, 9), rng.randint(1, 9), rng.randint(2, 9))
    )


def _always(args: Args) -> bool:
    return True


def _divides(args: Args) -> bool:
    return 2 <= args[1] <= 9


TABLE: tuple[SkillRule, ...] = (
    SkillRule(
        "add",
        "add two numbers column by column",
        ("add {a} and {b}", "the sum of {a} and {b}", "{a} plus {b}"),
        _two,
        _always,
        lambda v: _line(add_steps(*v), v[0] + v[1]),
        commutes=True,
        unseen_form="to {b} add {a}",
    ),
    SkillRule(
        "sub",
        "subtract two numbers column by column, with borrowing",
        ("subtract {b} from {a}", "{a} minus {b}", "take {b} away from {a}"),
        _descending,
        lambda v: v[0] >= v[1],
        lambda v: _line(sub_steps(*v), v[0] - v[1]),
        unseen_form="from {a} subtract {b}",
    ),
    SkillRule(
        "mul",
        "multiply a number by one digit",
        ("multiply {a} by {b}", "{a} times {b}", "the product of {a} and {b}"),
        _by_digit,
        _divides,
        lambda v: _line(mul_steps(*v), v[0] * v[1]),
        unseen_form="by {b} multiply {a}",
    ),
    SkillRule(
        "div",
        "divide a number by one digit by long division, rounding down",
        ("divide {a} by {b}", "split {a} among {b}", "how often {b} goes into {a}"),
        _by_digit,
        _divides,
        lambda v: _line(div_steps(*v), v[0] // v[1]),
        unseen_form="among {b} split {a}",
    ),
    SkillRule(
        "max",
        "compare two numbers digit by digit and keep the larger",
        ("the larger of {a} and {b}", "the maximum of {a} and {b}", "pick the bigger : {a} or {b}"),
        _two,
        _always,
        lambda v: _line(max_steps(*v), max(v)),
        commutes=True,
        unseen_form="of {a} and {b} the larger",
    ),
    SkillRule(
        "unit",
        "convert weeks and days to days",
        (
            "the days in {a} weeks and {b} days",
            "convert {a} weeks {b} days to days",
            "how many days are {a} weeks plus {b} days",
        ),
        _weeks,
        lambda v: 0 <= v[1] <= 6,
        lambda v: _line(mul_steps(v[0], 7, carry=v[1]), 7 * v[0] + v[1]),
        unseen_form="to days convert {a} weeks {b} days",
    ),
    SkillRule(
        "mod",
        "give the remainder of a division in a single step",
        ("the remainder of {a} by {b}", "{a} modulo {b}", "what remains of {a} in groups of {b}"),
        _modulo,
        _divides,
        lambda v: _line([Step(f"{v[0]}%{v[1]}={v[0] % v[1]}")], v[0] % v[1]),
    ),
    SkillRule(
        "bill",
        "multiply a price by a count and add a fee",
        (
            "the bill for {c} meals at {a} and a fee of {b}",
            "{c} meals at {a} each and {b} for delivery , bill",
            "pay for {c} meals at {a} and fee {b}",
        ),
        _draw_bill,
        lambda v: 2 <= v[2] <= 9,
        _bill,
    ),
    SkillRule(
        "total",
        "add three numbers one after the other",
        ("the total of {a} , {b} and {c}", "count together {a} , {b} and {c}", "{a} , {b} and {c} in all"),
        _small_three,
        _always,
        _total,
    ),
    SkillRule(
        "average",
        "add two numbers and halve the sum",
        ("the average of {a} and {b}", "the mean of {a} and {b}", "halfway between {a} and {b}"),
        _even_two,
        lambda v: (v[0] + v[1]) % 2 == 0,
        _average,
        commutes=True,
    ),
    SkillRule(
        "perimeter",
        "add two sides and double the sum",
        (
            "the perimeter of a rectangle {a} by {b}",
            "the fence around a field {a} by {b}",
            "rectangle with sides {a} and {b} , perimeter",
        ),
        _small_two,
        _always,
        _perimeter,
        commutes=True,
    ),
    SkillRule(
        "left",
        "multiply a price by a count and subtract it from a budget",
        (
            "{a} coins , spend {b} on each of {c} days , coins left",
            "what is left of {a} after {c} payments of {b}",
            "pay {b} for {c} tickets from {a} , change",
        ),
        _draw_left,
        lambda v: 2 <= v[2] <= 9 and v[0] >= v[1] * v[2],
        _left,
    ),
    SkillRule(
        "equation",
        "solve a linear equation: subtract, then divide",
        (
            "solve {c} x plus {b} equals {a}",
            "find x if {c} x plus {b} is {a}",
            "x when {a} equals {c} x plus {b}",
        ),
        _draw_equation,
        lambda v: 2 <= v[2] <= 9 and v[0] >= v[1] and (v[0] - v[1]) % v[2] == 0,
        _equation,
    ),
    SkillRule(
        "profit",
        "subtract the cost from the price and multiply by a count",
        (
            "buy at {b} and sell at {a} , profit on {c} pieces",
            "the profit on {c} pieces bought at {b} and sold at {a}",
            "sell {c} pieces at {a} that cost {b} , profit",
        ),
        _draw_profit,
        lambda v: 2 <= v[2] <= 9 and v[0] >= v[1],
        _profit,
    ),
    SkillRule(
        "fraction",
        "add two fractions over their common denominator",
        (
            "add fractions {a} / {b} and {c} / {d}",
            "{a} / {b} plus fraction {c} / {d}",
            "the fraction sum {a} / {b} and {c} / {d}",
        ),
        _draw_fraction,
        lambda v: v[1] > 0 and v[3] > 0 and max(v) <= 9,
        _fraction,
        chains=False,
    ),
)
BY_NAME: dict[str, SkillRule] = {skill.name: skill for skill in TABLE}
