"""A small run on files: questions, a student's answers, a scripted teacher; made anew for each test."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SUBJECTS = {"Number Theory": ("sum", "gcd"), "Counting & Probability": ("choose", "permute")}
WORDS = (
    "apples",
    "boats",
    "candles",
    "drums",
    "eagles",
    "flutes",
    "gates",
    "hats",
    "inks",
    "jars",
    "kites",
    "lamps",
)


def question(number: int) -> dict[str, Any]:
    """One question; every fifth has no label, every fourth is hard."""
    subject = list(SUBJECTS)[number % 2]
    skill = SUBJECTS[subject][number // 2 % 2]
    amounts = f"{number} {WORDS[number * 5 % 12]} and {number + 3} {WORDS[number * 7 % 12]}"
    text = f"{WORDS[number % 12].title()} problem {number}: apply {skill} to {amounts}."
    return {
        "id": f"t{number}",
        "question": text,
        "solution": f"We apply {skill}.\n\nSo it is \\boxed{{{number + 7}}}.",
        "answer": str(number + 7),
        "level": f"Level {number % 4 + 2}",
        "subject": subject,
        "skills": [] if number % 5 == 0 else [skill],
    }


@pytest.fixture
def ask() -> Callable[[int], str]:
    """The text of a training question by number."""
    return lambda number: str(question(number)["question"])


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    data = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(data.encode()))
    else:
        path.write_text(data)


CONFIG = """
answers = "answers.jsonl"
[data]
train = "train.jsonl.gz"
validation = "validation.jsonl"
held_out = ["test.jsonl"]
[filters]
grade = "text"
[teacher]
scripted = { script = "script.json" }
[strategy]
pairs = 60
"""


@pytest.fixture
def make_files(tmp_path: Path) -> Callable[..., Path]:
    """Write the files of a run and its configuration; gives the configuration's path."""

    def make(config: str = CONFIG, train: int = 60, validation: int = 12) -> Path:
        rows = [question(number) for number in range(train)]
        asked = [{**question(number), "id": f"v{number}"} for number in range(100, 100 + validation)]
        repeat = {**rows[1], "id": "repeat", "question": rows[1]["question"].upper()}
        leaked = {
            **rows[2],
            "id": "leaked",
            "question": "A question of the test, word for word, that applies gcd to 4 and 6.",
        }
        write(tmp_path / "train.jsonl.gz", [*rows, repeat, leaked])
        write(tmp_path / "validation.jsonl", asked)
        write(
            tmp_path / "test.jsonl",
            [{**question(number), "id": f"h{number}"} for number in range(200, 206)]
            + [{**leaked, "id": "h"}],
        )
        said = [
            {
                "question_id": row["id"],
                "response": f"I think.\n\\boxed{{{row['answer'] if at % 3 == 0 else 'no idea'}}}",
            }
            for at, row in enumerate(asked)
        ]
        write(tmp_path / "answers.jsonl", said)
        labels = {row["question"]: [*SUBJECTS[row["subject"]]] for row in (*rows, *asked)}
        (tmp_path / "script.json").write_text(json.dumps({"labels": labels, "calls": "calls.jsonl"}))
        (tmp_path / "stat.toml").write_text(config)
        return tmp_path / "stat.toml"

    return make


@pytest.fixture
def calls(tmp_path: Path) -> Callable[[], list[tuple[str, str]]]:
    """What reached the scripted teacher so far, over all processes."""

    def read() -> list[tuple[str, str]]:
        path = tmp_path / "calls.jsonl"
        return [tuple(json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []

    return read
