"""Answers written to keep a regular expression busy: read in time linear in their length."""

import subprocess
import sys

import pytest

READ = """
import sys
from graphs.filters.final_answers import final_answer
print(final_answer(sys.stdin.read()))
"""


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("the answer is" + " " * 100_000 + "a" + " " * 100_000 + "b", "a b"),
        ("the answer is" + "\n" * 200_000 + "12.", "12"),
        ("answer " * 50_000 + "= 7", "7"),
        ("the answer is" + "." * 200_000 + "x", "None"),
    ],
)
def test_a_long_answer_is_read(text: str, found: str) -> None:
    # Of the first, 8,000 characters took 11 s; the deadline is far from what linear reading needs.
    read = subprocess.run(
        [sys.executable, "-c", READ], input=text, capture_output=True, text=True, timeout=60, check=True
    )
    assert read.stdout.strip() == found
