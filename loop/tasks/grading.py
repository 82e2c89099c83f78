"""Final answers compared as text. As mathematics they are compared by `graphs.filters.grading.MathGrader`,
which fits the same port."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from graphs.filters.final_answers import final_answer, same_text

Grade: TypeAlias = Callable[[str, str, str], bool | None]
"""(question, right answer, response) -> right, wrong, or None: cannot tell."""


def grade_text(question: str, gold: str, response: str) -> bool | None:
    r"""Whether the boxed or stated answer, else the last line, is written like the right one; no opinion
    without a right answer.

    >>> grade_text("?", "4", "so it is \\boxed{4}."), grade_text("?", "4", "3 + 1\n5\n")
    (True, False)
    >>> grade_text("?", "", "5") is None
    True
    """
    if not gold.strip():
        return None
    final = final_answer(response)
    last = next((line for line in reversed(response.splitlines()) if line.strip()), "")
    return same_text(gold, last if final is None else final)
