"""Final answers as text: which part of a response it is, and when two are the same. As mathematics: `graphs.grading`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeAlias

from graphs.curation import same_answer_text

Grade: TypeAlias = Callable[[str, str, str], bool | None]
"""(question, right answer, response) -> right, wrong, or None: cannot tell."""

_BOX = "\\boxed{"


def final_text(response: str) -> str:
    r"""The last boxed part of a response, else its last line that is not blank.

    >>> final_text("so it is\n\\boxed{\\frac{1}{2}}."), final_text("3 + 1\n4\n")
    ('\\frac{1}{2}', '4')
    """
    start = response.rfind(_BOX)
    if start >= 0:
        inside = response[start + len(_BOX) :]
        return inside[: _closing(inside)]
    return next((line.strip() for line in reversed(response.splitlines()) if line.strip()), "")


def _closing(text: str) -> int:
    """Where the brace closes that was opened before `text`; the end when it never does."""
    depth = 1
    for at, sign in enumerate(text):
        depth += (sign == "{") - (sign == "}")
        if not depth:
            return at
    return len(text)


def grade_text(question: str, gold: str, response: str) -> bool | None:
    """Equal texts, but for case and space; no opinion without a right answer."""
    if not gold.strip():
        return None
    return same_answer_text(final_text(response)) == same_answer_text(gold)


def canonical_answer(answer: str) -> str:
    r"""The form in which final answers are compared with each other: as text, without what LaTeX adds for looks.

    >>> canonical_answer(r"$\dfrac{1}{2}$") == canonical_answer(r"\frac{1}{2}")
    True
    """
    bare = answer.strip().strip("$").replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac").replace("\\left", "").replace("\\right", "")
    bare = re.sub(r"\\[,;!: ]|\\text\s*|\s+", "", bare).rstrip(".")
    return same_answer_text(bare)
