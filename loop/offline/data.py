"""The question sets of a run: pool, validation and held-out, read and split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from agent.chance import ordered
from loop.offline.config import DataSection
from loop.tasks.questions import Question, read_questions
from streams.files import DataError


@dataclass(frozen=True)
class Data:
    """The sets of a run: `pool` may be trained on (the paper's P), `validation` shows what is missing (Q),
    `held_out` measures."""

    pool: tuple[Question, ...]
    validation: tuple[Question, ...]
    held_out: Mapping[str, tuple[Question, ...]]

    @cached_property
    def by_id(self) -> Mapping[str, Question]:
        """Pool and validation questions by id."""
        return {item.item_id: item for item in (*self.pool, *self.validation)}

    @property
    def untouchable(self) -> list[str]:
        """Texts that must not be trained on: the held-out sets and the validation questions."""
        return [
            item.question for questions in (*self.held_out.values(), self.validation) for item in questions
        ]


def load_data(section: DataSection, seed: int) -> Data:
    """Read the sets. Without a validation file, `validation_questions` are drawn from the training file and
    leave the pool.

    Raises `DataError` when the two share an id, or the training file is too small to be split.
    """
    train = read_questions(section.train)
    if section.validation is not None:
        validation = read_questions(section.validation)
        drawn = ordered((item.item_id for item in validation), seed, "validation")[
            : section.validation_questions
        ]
    else:
        validation = train
        drawn = ordered((item.item_id for item in train), seed, "validation")[: section.validation_questions]
    chosen = set(drawn)
    pool = [item for item in train if item.item_id not in chosen]
    if not pool or not chosen:
        raise DataError(
            f"{section.train} has {len(train)} questions; "
            f"{section.validation_questions} for validation leave no pool"
        )
    held_out = {path.name.split(".")[0]: tuple(read_questions(path)) for path in section.held_out}
    return Data(tuple(pool), tuple(item for item in validation if item.item_id in chosen), held_out)
