"""The process that compares mathematical answers (`graphs.filters.grading`): one JSON request a line on
stdin, one JSON reply on stdout.

A process of its own because math-verify bounds its time with SIGALRM, which works in a main thread only,
because sympy can hang in C code where no signal reaches it (`9**9**9`) and eat all memory, and because both
log and warn a lot.
"""

from __future__ import annotations

import json
import logging
import resource
import signal
import sys
from collections.abc import Sequence

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify  # type: ignore[import-untyped]
from math_verify.errors import TimeoutException  # type: ignore[import-untyped]

from graphs.filters.final_answers import final_answer, same_text

MEMORY_BYTES = 4 * 2**30
_LATEX = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())


def compare(gold: str, answer: str, timeout_s: int) -> bool | None:
    """Whether the final answer of the text `answer` equals `gold`; `None` when `gold` cannot be read, or time
    or memory ran out."""
    final = final_answer(answer)
    if final is not None and same_text(gold, final):
        return True
    try:
        expected = _read(f"${gold}$", timeout_s)
        read = _read(f"$\\boxed{{{final}}}$" if final is not None else answer, timeout_s)
        equal = bool(read) and bool(verify(expected, read, timeout_seconds=timeout_s, raise_on_error=True))
    except (
        Exception,
        TimeoutException,
    ):  # sympy raises whatever it likes; math-verify's time-out is a BaseException
        return None
    return equal if expected else None


def _read(text: str, timeout_s: int) -> Sequence[object]:
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
