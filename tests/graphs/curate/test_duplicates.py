"""Which questions count as the same."""

from __future__ import annotations

import itertools
import random

import pytest

from graphs.curate.duplicates import QuestionIndex, SameQuestion

STORY = (
    "Tom had 12 apples in his basket, "
    "gave 5 of them to his sister and ate one on the way home. How many are left?"
)


@pytest.mark.parametrize(
    ("known", "asked", "found"),
    [
        ("What is 3 + 5?", "  what is 3+5 ", "exact"),
        ("It costs 1,000 dollars.", "it costs 1000 dollars", "exact"),
        ("“Add” 3 and 5", "add 3 and 5", "exact"),
        (STORY, STORY.replace("Tom", "Ann"), "near"),
        (STORY, STORY.replace("12", "13"), None),
        ("add 3 and 5", "add 3 and 6", None),
        ("3 + 5", "3 - 5", None),
        ("(3 + 5) * 2", "3 + (5 * 2)", None),
        ("x is 3.5", "x is 35", None),
        ("add 3 and 5", "a completely different question with 3 and 5 in it", None),
        ("", "", "exact"),
        ("!", "3", None),
    ],
)
def test_same_question(known: str, asked: str, found: str | None) -> None:
    assert QuestionIndex(SameQuestion(), [known]).find(asked) == found


def test_template_questions_with_different_numbers_all_survive() -> None:
    index = QuestionIndex(SameQuestion())
    for one, other in itertools.combinations(range(40), 2):
        question = f"Work out the sum of {one} and {other} and write the result."
        assert index.find(question) is None
        index.add(question)


def test_without_the_numbers_a_template_is_one_question() -> None:
    index = QuestionIndex(SameQuestion(threshold=0.6, numbers_matter=False), [STORY])
    assert index.find(STORY.replace("12", "13")) == "near"


def test_the_threshold_is_a_setting() -> None:
    changed = STORY.replace("sister", "brother").replace("apples", "pears")
    assert QuestionIndex(SameQuestion(threshold=0.7), [STORY]).find(changed) is None
    assert QuestionIndex(SameQuestion(threshold=0.5), [STORY]).find(changed) == "near"


def test_many_questions_with_the_same_numbers_are_searched_through_minhash() -> None:
    chance = random.Random(0)
    words = [f"word{'abcdefghijklmnop'[at % 16]}{'abcdefghijklmnop'[at // 16]}" for at in range(200)]
    texts = [" ".join(chance.choices(words, k=20)) for _ in range(400)]
    index = QuestionIndex(SameQuestion(), texts)
    assert all(index.find(f"{text} indeed") == "near" for text in texts)
    assert all(index.find(" ".join(chance.choices(words, k=20))) is None for _ in range(400))


@pytest.mark.parametrize("setting", [{"threshold": 0.0}, {"threshold": 1.2}, {"shingle": 0}])
def test_settings_that_make_no_sense_are_refused(setting: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be in"):
        SameQuestion(**setting)  # type: ignore[arg-type]
