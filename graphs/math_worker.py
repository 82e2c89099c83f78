"""The process that compares mathematical answers (`graphs.grading`): one JSON request a line on stdin, one JSON reply on stdout.

A process of its own because math-verify bounds its time with SIGALRM, which works in a main thread only, because sympy can hang in
C code where no signal reaches it (`9**9**9`) and eat all memory, and because both log and warn a lot.
"""

from __future__ import annotations

import json
import logging
import re
import resource
import signal
import sys
from collections.abc import Sequence
from typing import Any

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
from math_verify.errors import TimeoutException

MEMORY_BYTES = 4 * 2**30
_LATEX = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())
_TEXT = re.compile(r"\\(?:text|mathrm|mbox)\{([^{}]*)\}")
_CONCLUDES = re.compile(r"\b(?:answer|result)\b[^.\n]{0,40}?(?:is|are|:|=)\s*(?P<value>[^\n]{1,200}?)\.?\s*$", re.IGNORECASE | re.MULTILINE)


def compare(gold: str, answer: str, timeout_s: int) -> bool | None:
    """Whether the final answer of the text `answer` equals `gold`; `None` when `gold` cannot be read, or time or memory ran out."""
    final = final_answer(answer)
    if final is not None and same_text(gold, final):
        return True
    try:
        expected = _read(f"${gold}$", timeout_s)
        given = _read(f"$\\boxed{{{final}}}$" if final is not None else answer, timeout_s)
        equal = bool(given) and bool(verify(expected, given, timeout_seconds=timeout_s, raise_on_error=True))
    except (Exception, TimeoutException):  # sympy raises whatever it likes; math-verify's time-out is a BaseException
        return None
    return equal if expected else None


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
    found = list(_CONCLUDES.finditer(text))
    return found[-1]["value"].strip().strip("$*") if found else None


def same_text(gold: str, final: str) -> bool:
    r"""Whether two final answers are written alike, up to spaces, spelling variants of LaTeX, and a unit that only one has.

    >>> same_text(r"\text{4:30 p.m.}", r"4:30 \text{ p.m.}"), same_text(r"100\text{ m}", "100"), same_text(r"4\text{ m}", r"4\text{ cm}")
    (True, True, False)
    """
    if _plain(_TEXT.sub(r"\1", gold)) == _plain(_TEXT.sub(r"\1", final)):
        return True
    bare = [_plain(_TEXT.sub("", text)) for text in (gold, final)]
    both_have_text = _TEXT.search(gold) and _TEXT.search(final)
    return bare[0] == bare[1] != "" and not both_have_text


def _plain(text: str) -> str:
    """A final answer without spaces and spelling variants of the same LaTeX."""
    for variant, usual in {"\\dfrac": "\\frac", "\\tfrac": "\\frac", "\\left": "", "\\right": "", "\\!": "", "\\,": "", "$": ""}.items():
        text = text.replace(variant, usual)
    return "".join(text.split()).rstrip(".").casefold()


def _read(text: str, timeout_s: int) -> Sequence[Any]:
    return list(parse(text, extraction_config=_LATEX, parsing_timeout=timeout_s, raise_on_error=True))


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when this ends
    logging.disable(logging.CRITICAL)
    sys.set_int_max_str_digits(10_000)
    for line in sys.stdin:
        asked = json.loads(line)
        reply = compare(asked["gold"], asked["answer"], asked["timeout_s"])
        sys.stdout.write(json.dumps({"id": asked["id"], "right": reply}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
