"""Evaluation: every held-out item answered and graded, kept item by item so that two students can be compared
in pairs.

Which items count for a skill: the single-skill stratum `skill:<name>` where the evaluation set has one, and
otherwise every item that needs the skill among others. Chains therefore never blur a skill that has items of
its own.

An item that the grader could not decide is neither right nor wrong: shares are taken over the decided items.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import ConfigDict, Field, model_validator

from agent.items import Frozen, HeldOutItem
from serving.engine import EngineUnavailable
from training.errors import EvaluationFailed, ItemSetMismatch

if TYPE_CHECKING:  # commands that look load no numpy
    from training.paired import Floats

Generate = Callable[[Sequence[str]], list[str]]
GradeItem = Callable[[HeldOutItem, str], bool | None]
"""None: undecided, which is not wrong."""
Correct = bool | Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None
"""One answer: right or not. Several sampled answers: the share of right ones among those decided. None:
undecided.
"""
Key = tuple[str, str, tuple[str, ...]]

SKILL_STRATUM = "skill:"


class Outcome(Frozen):
    """One item and whether, or how often among its samples, the student answered it correctly. `undecided`:
    the share of its samples that could not be graded, where some could."""

    model_config = ConfigDict(strict=True)

    item_id: str
    stratum: str
    skills: tuple[str, ...]
    correct: Correct
    undecided: float = Field(default=0.0, ge=0, lt=1, exclude_if=lambda share: share == 0)


class Evaluation(Frozen):
    """A student measured on one item set. JSON by `model_dump_json`, back by `model_validate_json`.

    `items_sha256` identifies the items with their questions and answers: only equal hashes may be compared.
    """

    items_sha256: str
    outcomes: tuple[Outcome, ...]

    @model_validator(mode="after")
    def _items_once(self) -> Evaluation:
        repeated = [
            key for key, count in Counter(outcome.item_id for outcome in self.outcomes).items() if count > 1
        ]
        if repeated:
            raise ValueError(f"{len(repeated)} items occur twice, first {repeated[0]!r}")
        return self

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy, which works out its own `keys` and `rates`."""
        copy = super().model_copy(update=update, deep=deep)
        for name in ("keys", "rates"):
            vars(copy).pop(name, None)
        return copy

    @cached_property
    def keys(self) -> tuple[Key, ...]:
        """What each outcome is about, in order: item, stratum, skills."""
        return tuple((outcome.item_id, outcome.stratum, outcome.skills) for outcome in self.outcomes)

    @cached_property
    def rates(self) -> Floats:
        """The outcomes as numbers in [0, 1], in order; NaN where undecided."""
        import numpy as np  # noqa: PLC0415

        return np.array([outcome.correct for outcome in self.outcomes], dtype=np.float64)

    def undecided(self) -> float:
        """Share of answers that the grader could not decide; each item's count as much as another's."""
        undecided = [1.0 if outcome.correct is None else outcome.undecided for outcome in self.outcomes]
        return sum(undecided) / len(undecided) if undecided else 0.0

    def skills(self) -> tuple[str, ...]:
        """Every skill that some item needs, sorted."""
        return tuple(sorted({skill for outcome in self.outcomes for skill in outcome.skills}))

    def strata(self) -> tuple[str, ...]:
        """The names of the evaluation sets, sorted."""
        return tuple(sorted({stratum for _, stratum, _ in self.keys}))

    def of_stratum(self, stratum: str) -> dict[str, Correct]:
        """Outcome by item id in one stratum."""
        return {outcome.item_id: outcome.correct for outcome in self.outcomes if outcome.stratum == stratum}

    def of_skill(self, skill: str) -> dict[str, Correct]:
        """Outcome by item id for one skill (the rule is in the module's docstring)."""
        own = self.of_stratum(SKILL_STRATUM + skill)
        if own:
            return own
        return {outcome.item_id: outcome.correct for outcome in self.outcomes if skill in outcome.skills}

    def accuracy(self) -> float:
        """Share of the decided items answered correctly, each item once. Raises `EvaluationFailed` when none
        was decided.
        """
        share = _share(outcome.correct for outcome in self.outcomes)
        if share is None:
            raise EvaluationFailed(f"none of {len(self.outcomes)} items could be graded; check the grader")
        return share

    def accuracy_by_stratum(self) -> dict[str, float]:
        """Share answered correctly per stratum; strata without a decided item are left out."""
        return _shares({stratum: self.of_stratum(stratum) for stratum in self.strata()})

    def accuracy_by_skill(self) -> dict[str, float]:
        """Share answered correctly per skill; skills without a decided item are left out."""
        return _shares({skill: self.of_skill(skill) for skill in self.skills()})

    def mixture(self, weights: Mapping[str, float]) -> float:
        """Accuracy on a mixture of strata, from the strata already scored; weights need not add up to 1.

        Raises `EvaluationFailed` for a stratum that was not measured or weights that are no mixture.
        """
        accuracy = self.accuracy_by_stratum()
        unknown = sorted(set(weights) - set(accuracy))
        if unknown:
            raise EvaluationFailed(
                f"strata {unknown} were not measured; the evaluation has {sorted(accuracy)}"
            )
        total = math.fsum(weights.values())
        if not (math.isfinite(total) and total > 0 and min(weights.values()) >= 0):
            raise EvaluationFailed(
                f"weights {dict(weights)} are no mixture; give finite weights of at least 0, not all 0"
            )
        return math.fsum(weight * accuracy[stratum] for stratum, weight in weights.items()) / total


def item_set_sha256(items: Sequence[HeldOutItem]) -> str:
    """The identity of an item set: every field of every item, whatever their order."""
    rows = sorted(json.dumps(item.model_dump(mode="json"), sort_keys=True) for item in items)
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def evaluate(
    generate: Generate, grade: GradeItem, items: Sequence[HeldOutItem], samples: int = 1
) -> Evaluation:
    """Answer all items with one call of `generate`, grade each answer, keep every outcome.

    With `samples` above 1 each question is put that many times in a row (`generate` should sample at a
    temperature above 0) and the outcome is the share of right answers. Raises `EvaluationFailed` when there
    are no items, an item occurs twice, or generating or grading fails, and `EngineUnavailable` when no server
    of the student answers: evaluate again later.
    """
    _check_items(items)
    questions = [item.question for item in items for _ in range(samples)]
    try:
        answers = generate(questions)
    except EngineUnavailable:
        raise
    except Exception as exc:
        raise EvaluationFailed(
            f"the student could not answer {len(items)} items ({type(exc).__name__}: {exc}); evaluate again"
        ) from exc
    if len(answers) != len(questions):
        raise EvaluationFailed(
            f"the student gave {len(answers)} answers to {len(questions)} items; there must be one each"
        )
    outcomes = tuple(
        _outcome(grade, item, answers[place * samples : (place + 1) * samples])
        for place, item in enumerate(items)
    )
    return Evaluation(items_sha256=item_set_sha256(items), outcomes=outcomes)


def require_same_items(champion: Evaluation, challenger: Evaluation) -> None:
    """Raise `ItemSetMismatch` unless both were measured on the same items, in any order."""
    if champion.items_sha256 != challenger.items_sha256:
        raise ItemSetMismatch(
            f"the champion was measured on items {champion.items_sha256[:12]}, the challenger on "
            f"{challenger.items_sha256[:12]}; evaluate both on one item set"
        )
    if champion.keys != challenger.keys and set(champion.keys) != set(challenger.keys):
        raise ItemSetMismatch(
            "the two evaluations claim the same item set but list different items; evaluate both again"
        )


def _check_items(items: Sequence[HeldOutItem]) -> None:
    if not items:
        raise EvaluationFailed("there are no held-out items; a student cannot be judged without data")
    repeated = [key for key, count in Counter(item.item_id for item in items).items() if count > 1]
    if repeated:
        raise EvaluationFailed(
            f"{len(repeated)} held-out items occur twice, first {repeated[0]!r}; item ids must be unique"
        )


def _outcome(grade: GradeItem, item: HeldOutItem, answers: Sequence[str]) -> Outcome:
    """One answer's grade as it is; of several, the share of right ones among the decided."""
    grades = [_grade_answer(grade, item, answer) for answer in answers]
    correct = grades[0] if len(grades) == 1 else _share(grades)
    return Outcome(
        item_id=item.item_id,
        stratum=item.stratum,
        skills=item.skills,
        correct=correct,
        undecided=0.0 if correct is None else grades.count(None) / len(grades),
    )


def _grade_answer(grade: GradeItem, item: HeldOutItem, answer: str) -> bool | None:
    try:
        correct = grade(item, answer)
    except Exception as exc:
        raise EvaluationFailed(f"grading item {item.item_id!r} failed ({type(exc).__name__}: {exc})") from exc
    if correct is not None and not isinstance(correct, bool):
        raise EvaluationFailed(
            f"grading item {item.item_id!r} gave {correct!r}; a grade is True, False or None (undecided)"
        )
    return correct


def _shares(groups: Mapping[str, Mapping[str, Correct]]) -> dict[str, float]:
    shares = {name: _share(outcomes.values()) for name, outcomes in groups.items()}
    return {name: share for name, share in shares.items() if share is not None}


def _share(values: Iterable[Correct]) -> float | None:
    decided = [float(value) for value in values if value is not None]
    return math.fsum(decided) / len(decided) if decided else None
