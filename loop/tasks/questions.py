"""Reading questions: training, validation and held-out sets as JSON lines (fields in docs/stat.md), split and
turned into items."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from agent.catalog import MAX_SKILLS_PER_ITEM
from agent.chance import ordered
from agent.items import Frozen, HeldOutItem, JsonObject, PoolItem
from streams.codec import first_error
from streams.files import DataError, read_objects, text_sha256


class Question(Frozen):
    """One question as the data file has it. Without an `id` it gets one from its text. `level` may be "Level
    3" or 3."""

    item_id: str
    question: str
    solution: str = ""
    answer: str = ""
    level: int | None = None
    subject: str = ""
    skills: tuple[str, ...] = ()


def read_questions(path: Path) -> list[Question]:
    """The questions of a file, in its order. Raises `DataError` for a missing question or an id that comes
    twice."""
    questions = [_question(value, path, number) for number, value in enumerate(read_objects(path), 1)]
    twice = [item_id for item_id, count in Counter(item.item_id for item in questions).items() if count > 1]
    if twice:
        raise DataError(
            f"{path}: {len(twice)} ids come twice, first {twice[0]!r}; give each question its own id"
        )
    return questions


def _question(value: JsonObject, path: Path, number: int) -> Question:
    text = value.get("question")
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{path}, line {number}: no text in the field question")
    known = {
        name: value[name]
        for name in ("question", "solution", "answer", "subject")
        if value.get(name) is not None
    }
    skills = tuple(dict.fromkeys(value.get("skills") or ()))[:MAX_SKILLS_PER_ITEM]
    try:
        return Question(
            item_id=str(value.get("id") or text_sha256(text)[:16]),
            level=_level(value.get("level")),
            skills=skills,
            **known,
        )
    except ValidationError as exc:
        raise DataError(f"{path}, line {number}: {first_error(exc)}") from exc


def _level(value: object) -> int | None:
    digits = re.search(r"\d+", str(value)) if value is not None else None
    return int(digits.group()) if digits else None


def subject_key(subject: str) -> str:
    """The form in which subjects are compared.

    >>> subject_key("Counting & Probability") == subject_key("counting_and_probability")
    True
    """
    return re.sub(r"[^a-z0-9]+", "_", subject.casefold().replace("&", " and ")).strip("_")


def pool_items(questions: Sequence[Question], labels: Mapping[str, tuple[str, ...]]) -> dict[str, PoolItem]:
    """Pool questions with a solution, as items, by id; `labels` gives their skills. One without a solution
    cannot be taught."""
    return {
        item.item_id: PoolItem(
            item_id=item.item_id,
            question=item.question,
            solution=item.solution,
            answer=item.answer,
            skills=labels.get(item.item_id, ()),
        )
        for item in questions
        if item.solution.strip()
    }


def held_out_items(
    held_out: Mapping[str, Sequence[Question]], at_most: int | None, seed: int
) -> list[HeldOutItem]:
    """The evaluation's items: at most `at_most` of each set, the same ones for every student. The set is the
    stratum."""
    items: list[HeldOutItem] = []
    for name, questions in held_out.items():
        chosen = set(
            ordered((item.item_id for item in questions if item.answer), seed, "evaluate", name)[:at_most]
        )
        items += [
            HeldOutItem(
                item_id=f"{name}/{item.item_id}",
                question=item.question,
                answer=item.answer,
                skills=item.skills,
                stratum=name,
            )
            for item in questions
            if item.item_id in chosen
        ]
    return items
