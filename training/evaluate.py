"""Evaluation: every held-out item answered and graded once, kept item by item so that two students can be
compared in pairs.

Which items count for a skill: the single-skill stratum `skill:<name>` where the evaluation set has one, and
otherwise every item that needs the skill among others. Chains therefore never blur a skill that has items of
its own.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from pydantic import BaseModel, ConfigDict, model_validator

from agent.items import HeldOutItem
from training.errors import EvaluationFailed, ItemSetMismatch

Generate = Callable[[Sequence[str]], list[str]]
GradeItem = Callable[[HeldOutItem, str], bool]

SKILL_STRATUM = "skill:"


class Outcome(BaseModel):
    """One item and whether the student answered it correctly."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    item_id: str
    stratum: str
    skills: tuple[str, ...]
    correct: bool


class Evaluation(BaseModel):
    """A student measured on one item set. JSON by `model_dump_json`, back by `model_validate_json`.

    `items_sha256` identifies the items with their questions and answers: only equal hashes may be compared.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

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

    def skills(self) -> tuple[str, ...]:
        """Every skill that some item needs, sorted."""
        return tuple(sorted({skill for outcome in self.outcomes for skill in outcome.skills}))

    def strata(self) -> tuple[str, ...]:
        """The names of the evaluation sets, sorted."""
        return tuple(sorted({outcome.stratum for outcome in self.outcomes}))

    def of_stratum(self, stratum: str) -> dict[str, bool]:
        """Outcome by item id in one stratum."""
        return {outcome.item_id: outcome.correct for outcome in self.outcomes if outcome.stratum == stratum}

    def of_skill(self, skill: str, without: Sequence[str] = ()) -> dict[str, bool]:
        """Outcome by item id for one skill (the rule is in the module's docstring); strata in `without` do
        not count."""
        own = self.of_stratum(SKILL_STRATUM + skill)
        if own:
            return own
        return {o.item_id: o.correct for o in self.outcomes if skill in o.skills and o.stratum not in without}

    def accuracy(self) -> float:
        """Share of all items answered correctly, each item once."""
        return _share(outcome.correct for outcome in self.outcomes)

    def accuracy_by_stratum(self) -> dict[str, float]:
        """Share answered correctly per stratum."""
        return {stratum: _share(self.of_stratum(stratum).values()) for stratum in self.strata()}

    def accuracy_by_skill(self) -> dict[str, float]:
        """Share answered correctly per skill."""
        return {skill: _share(self.of_skill(skill).values()) for skill in self.skills()}

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


def evaluate(generate: Generate, grade: GradeItem, items: Sequence[HeldOutItem]) -> Evaluation:
    """Answer all items with one call of `generate`, grade each answer, keep every outcome.

    Raises `EvaluationFailed` when there are no items, an item occurs twice, or generating or grading fails.
    """
    _check_items(items)
    try:
        answers = generate([item.question for item in items])
    except Exception as exc:
        raise EvaluationFailed(
            f"the student could not answer {len(items)} items ({type(exc).__name__}: {exc}); evaluate again"
        ) from exc
    if len(answers) != len(items):
        raise EvaluationFailed(
            f"the student gave {len(answers)} answers to {len(items)} items; there must be one each"
        )
    outcomes = tuple(
        Outcome(
            item_id=item.item_id,
            stratum=item.stratum,
            skills=item.skills,
            correct=_grade(grade, item, answer),
        )
        for item, answer in zip(items, answers, strict=True)
    )
    return Evaluation(items_sha256=item_set_sha256(items), outcomes=outcomes)


def require_same_items(champion: Evaluation, challenger: Evaluation) -> None:
    """Raise `ItemSetMismatch` unless both were measured on the same items, in any order."""
    if champion.items_sha256 != challenger.items_sha256:
        raise ItemSetMismatch(
            f"the champion was measured on items {champion.items_sha256[:12]}, "
            f"the challenger on {challenger.items_sha256[:12]}; evaluate both on one item set"
        )
    if {o.item_id: (o.stratum, o.skills) for o in champion.outcomes} != {
        o.item_id: (o.stratum, o.skills) for o in challenger.outcomes
    }:
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


def _grade(grade: GradeItem, item: HeldOutItem, answer: str) -> bool:
    try:
        correct = grade(item, answer)
    except Exception as exc:
        raise EvaluationFailed(f"grading item {item.item_id!r} failed ({type(exc).__name__}: {exc})") from exc
    if not isinstance(correct, bool):
        raise EvaluationFailed(f"grading item {item.item_id!r} gave {correct!r}; a grade is True or False")
    return correct


def _share(values: Iterable[bool]) -> float:
    flags = list(values)
    return sum(flags) / len(flags)
