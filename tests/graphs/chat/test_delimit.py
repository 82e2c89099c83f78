"""No text can contain or imitate its fence, whatever its signs are made of."""

from __future__ import annotations

import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphs.chat.delimit import REPLACEMENT, blocks, clean, fence, quoted

clean("\u00e9")  # its table is made at the first call

_SIGNS = "<>\uff1c\uff1e\u2039\u203a\u1438\u300a\uff5c|\ufe0f\u3164\u200b\u2028"
_WORDS = ("end-", "data-", "0123456789abcdef", "im_start", "\n", " answer", "a")
HOSTILE = st.sampled_from([*_SIGNS, *_WORDS])
TEXTS = st.lists(HOSTILE | st.characters(), max_size=60).map("".join)


@given(TEXTS)
def test_a_fenced_text_is_one_block_and_holds_no_other_fence(text: str) -> None:
    block = fence("answer", text, 10_000)
    assert blocks(block) == [("answer", clean(text))]
    inside = unicodedata.normalize("NFKC", block.split("\n", 1)[1].rsplit("\n", 1)[0])
    assert "<<<" not in inside
    assert ">>>" not in inside
    assert "<|im_start|>" not in inside


@given(TEXTS)
def test_cleaning_keeps_every_position_and_changes_nothing_the_second_time(text: str) -> None:
    cleaned = clean(text)
    assert len(cleaned) == len(text)
    assert clean(cleaned) == cleaned


@pytest.mark.parametrize(
    "sign", ["\ufe0f", "\U000e0100", "\u3164", "\u115f", "\uffa0", "\u034f", "\u17b4", "\u2028", "\U000e0041"]
)
def test_invisible_characters_are_shown(sign: str) -> None:
    assert clean(f"a{sign}b") == f"a{REPLACEMENT}b"


@pytest.mark.parametrize(
    "code",
    [
        "x < y",
        "1 << 3",
        "a >> b",
        "f(x) |> g",
        "a || b",
        "if a <= b: <b>",
        "[1, 2]",
        "caf\u00e9 \u4f60\u597d",
    ],
)
def test_what_people_write_stays(code: str) -> None:
    assert clean(code) == code


def test_evidence_is_found_in_the_original_text() -> None:
    answer = "so <<<2 + 2>>> is\u200b 5"
    assert quoted(answer, clean(answer)) == answer


def test_a_long_hostile_text_takes_no_time() -> None:
    began = time.process_time()
    for text in ("<|" * 50_000, "<" * 100_000, "\u300a" * 100_000, "[/INST" * 20_000):
        clean(text)
    assert time.process_time() - began < 5
