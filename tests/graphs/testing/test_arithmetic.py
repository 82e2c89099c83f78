"""The scripted teacher's arithmetic: word problems read, and a whole teacher over HTTP that judges them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.budget import Price
from agent.items import PoolItem
from graphs.chat.cache import SqliteReplies
from graphs.chat.meter import Meter
from graphs.chat.settings import ChatSettings
from graphs.chat.teacher import ChatTeacher
from graphs.testing import arithmetic
from graphs.testing.brain import ArithmeticBrain
from graphs.testing.server import TeacherServer
from loop.config import CONFIGS, load

SKILLS = ("adding", "subtraction within 20", "multiplication tables", "fair shares")
PRODUCT = "There are 6 boxes with 7 nuts each. How many nuts are there?"


@pytest.mark.parametrize(
    ("question", "answer", "operations"),
    [
        ("Tom has 5 apples and buys 3 more. How many?", 8, ("addition",)),
        ("Tom has 9 pears and gives 4 away. How many are left?", 5, ("subtraction",)),
        ("How many more is 9 than 4?", 5, ("subtraction",)),
        ("Each of 6 boxes holds 7 nuts. How many nuts?", 42, ("multiplication",)),
        ("Ann reads 5 pages every day for 4 days. How many pages?", 20, ("multiplication",)),
        ("Find the product of 6 and 7.", 42, ("multiplication",)),
        ("20 sweets are shared equally by 4 children. How many each?", 5, ("division",)),
        ("What is 12 + 3 * 4?", 24, ("addition", "multiplication")),
        ("A shop had 40 cups, sold 15 and then got 10 more. How many now?", 35, ("subtraction", "addition")),
        (PRODUCT, 42, ("multiplication",)),
        ("Why is the sky blue?", None, ()),
        ("What is 3 / 0?", None, ("division",)),
        ("Jo has 5 pens. Kim has 3 pens. How many in all?", 8, ("addition",)),
        ("Ann has 4 boxes of 9 plums each. How many plums are there?", 36, ("multiplication",)),
        ("What is the sum of 6 and 7?", 13, ("addition",)),
        ("What is 3 * (4 + 2)?", None, ()),
        ("What is 1,000 + 20?", None, ()),
        ("What is 50% of 80?", None, ()),
        ("24 pupils in 4 equal groups, how many in each?", None, ()),
        ("3 pens at $2 each and a book for $5. What does it cost?", None, ()),
        ("What is 5 years younger than 12?", None, ()),
        ("What is 3 fewer than 10?", None, ()),
        ("Bus 12 leaves at 9. When?", None, ()),
        ("What is -3 + 5?", None, ()),
        ("What is 2/3 of 9?", None, ()),
    ],
)
def test_word_problems_are_read(question: str, answer: int | None, operations: tuple[str, ...]) -> None:
    assert arithmetic.solve(question) == answer
    assert arithmetic.operations(question) == operations


@pytest.fixture
def teacher(tmp_path: Path) -> Iterator[ChatTeacher]:
    with TeacherServer(brain=ArithmeticBrain(), model="teacher") as server:
        price = Price(free=True)
        settings = ChatSettings(base_url=server.base_url, model="teacher", price=price)
        with (
            SqliteReplies(tmp_path / "replies.sqlite") as cache,
            ChatTeacher.connect(settings, cache, Meter("teacher", price), student="s") as connected,
        ):
            yield connected


def test_a_teacher_over_http_finds_the_skill_that_is_missing(teacher: ChatTeacher) -> None:
    assert teacher.label(PRODUCT, SKILLS).skills == ("multiplication tables",)
    right = teacher.diagnose(PRODUCT, "6 * 7 = 42. The answer is 42.", SKILLS[2:3], SKILLS)
    wrong = teacher.diagnose(PRODUCT, "6 and 7 is 13.\nThe answer is 13.", SKILLS[2:3], SKILLS)
    assert right.verdict == "correct"
    assert (wrong.verdict, wrong.missing, wrong.evidence) == (
        "incorrect",
        ("multiplication tables",),
        "The answer is 13.",
    )


def test_it_writes_questions_of_the_skill_and_solves_them(teacher: ChatTeacher) -> None:
    reference = PoolItem(item_id="1", question=PRODUCT, solution="", answer="42", skills=SKILLS[2:3])
    written = teacher.write(SKILLS[2], [reference], 3, seed=1).questions
    assert len(set(written)) == 3
    for question in written:
        solution = teacher.solve(question, 1, seed=1).solutions[0]
        assert solution.answer == str(arithmetic.solve(question))


def test_the_server_answers_where_the_shipped_configurations_ask() -> None:
    chat = load(CONFIGS / "online.toml").teacher.chat
    assert chat is not None
    done = subprocess.run(
        [sys.executable, "-m", "graphs.testing.server", "--help"], capture_output=True, text=True, check=True
    )
    told = " ".join(done.stdout.split())
    assert f"(default: {chat.model})" in told and f"(default: {chat.base_url.split(':')[2][:-3]})" in told
