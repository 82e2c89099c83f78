"""The final answer of a worked solution, as text: where it stands, and when two are written alike. No
mathematics here."""

from __future__ import annotations

import re

_TEXT = re.compile(r"\\(?:text|mathrm|mbox)\{([^{}]*)\}")
_BLANKS = re.compile(r"[^\S\n]+")
# On text without runs of blanks: each repetition is bounded, so the time is linear in the text's length.
_CONCLUDES = re.compile(
    r"\b(?:answer|result)\b[^.\n]{0,40}?(?:is|are|:|=)\s?(?P<value>[^\n]{1,200})$",
    re.IGNORECASE | re.MULTILINE,
)


def final_answer(text: str) -> str | None:
    r"""What stands in the last `\boxed{...}`, else after the last "the answer is", else `None`.

    >>> final_answer(r"so \boxed{\frac{1}{2}}."), final_answer("The answer is 12."), final_answer("12")
    ('\\frac{1}{2}', '12', None)
    """
    at = max(text.rfind("\\boxed{"), text.rfind("\\fbox{"))
    if at >= 0:
        depth = 0
        begin = text.index("{", at)
        for end in range(begin, len(text)):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            if depth == 0:
                return text[begin + 1 : end]
    lines = (line.strip() for line in _BLANKS.sub(" ", text).splitlines())
    conclusions = list(_CONCLUDES.finditer("\n".join(line for line in lines if line)))
    return conclusions[-1]["value"].removesuffix(".").strip().strip("$*") if conclusions else None


def same_text(gold: str, final: str) -> bool:
    r"""Whether two final answers are written alike, up to spaces, spelling variants of LaTeX, and a unit that
    only one has.

    >>> same_text(r"\text{4:30 p.m.}", r"4:30 \text{ p.m.}"), same_text(r"100\text{ m}", "100")
    (True, True)
    >>> same_text(r"4\text{ m}", r"4\text{ cm}")
    False
    """
    if _plain(_TEXT.sub(r"\1", gold)) == _plain(_TEXT.sub(r"\1", final)):
        return True
    bare = [_plain(_TEXT.sub("", text)) for text in (gold, final)]
    both_have_text = _TEXT.search(gold) and _TEXT.search(final)
    return bare[0] == bare[1] != "" and not both_have_text


def _plain(text: str) -> str:
    """A final answer without spaces and spelling variants of the same LaTeX."""
    for variant, usual in {
        "\\dfrac": "\\frac",
        "\\tfrac": "\\frac",
        "\\left": "",
        "\\right": "",
        "\\!": "",
        "\\,": "",
        "$": "",
    }.items():
        text = text.replace(variant, usual)
    return "".join(text.split()).rstrip(".").casefold()


def canonical(answer: str) -> str:
    r"""A final answer in the form in which answers are counted: by spelling, for samples of one student.

    >>> canonical(r"so \boxed{\dfrac12}") == canonical(r"The answer is $\frac12$.")
    True
    """
    final = final_answer(answer)
    return _plain(_TEXT.sub(r"\1", answer if final is None else final))
