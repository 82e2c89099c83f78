"""Evaluation: item by item, never partial, the same items or an error."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from pydantic import ValidationError

from training.errors import EvaluationFailed, ItemSetMismatch
from training.evaluate import Evaluation, evaluate, require_same_items


def right_on(*endings: str) -> Callable:
    return lambda item, answer: answer.endswith(endings)


def echo(prompts: object) -> list[str]:
    return list(prompts)  # type: ignore[call-overload]


def test_accuracy_by_skill_stratum_and_mixture(make_items: Callable) -> None:
    items = make_items("skill:add", ("add",), 4) + make_items("mix:original", ("add", "sub"), 10)
    found = evaluate(echo, right_on("0", "1"), items)
    assert found.accuracy_by_stratum() == {"skill:add": 0.5, "mix:original": 0.2}
    assert found.accuracy_by_skill() == {"add": 0.5, "sub": 0.2}
    assert found.accuracy() == 4 / 14
    assert found.mixture({"skill:add": 3, "mix:original": 1}) == pytest.approx(0.425)
    assert Evaluation.model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize(
    "weights", [{}, {"skill:add": 0.0}, {"skill:add": -1.0}, {"skill:add": float("nan")}, {"unknown": 1.0}]
)
def test_weights_that_are_no_mixture(weights: dict[str, float], make_items: Callable) -> None:
    found = evaluate(echo, right_on("0"), make_items("skill:add", ("add",), 4))
    with pytest.raises(EvaluationFailed):
        found.mixture(weights)


def test_the_item_set_is_identified_by_content_not_order(make_items: Callable) -> None:
    items = make_items("skill:add", ("add",), 4)
    first, second = evaluate(echo, right_on("0"), items), evaluate(echo, right_on("1"), items[::-1])
    require_same_items(first, second)
    changed = [items[0].model_copy(update={"answer": "another"}), *items[1:]]
    with pytest.raises(ItemSetMismatch, match="evaluate both on one item set"):
        require_same_items(first, evaluate(echo, right_on("0"), changed))
    with pytest.raises(ItemSetMismatch, match="list different items"):
        require_same_items(first, first.model_copy(update={"outcomes": first.outcomes[1:]}))


def test_there_is_never_a_partial_result(make_items: Callable) -> None:
    items = make_items("skill:add", ("add",), 4)

    def dies(prompts: object) -> list[str]:
        raise RuntimeError("engine gone")

    def fails_late(item: object, answer: str) -> bool:
        if answer.endswith("3"):
            raise ValueError("no number")
        return True

    with pytest.raises(EvaluationFailed, match="engine gone"):
        evaluate(dies, right_on("0"), items)
    with pytest.raises(EvaluationFailed, match="3 answers to 4 items"):
        evaluate(lambda prompts: list(prompts)[1:], right_on("0"), items)
    with pytest.raises(EvaluationFailed, match="grading item 'skill:add-3'"):
        evaluate(echo, fails_late, items)
    with pytest.raises(EvaluationFailed, match="gave 1; a grade is True, False or None"):
        evaluate(echo, lambda item, answer: 1, items)  # type: ignore[arg-type,return-value]
    with pytest.raises(EvaluationFailed, match="no held-out items"):
        evaluate(echo, right_on("0"), [])
    with pytest.raises(EvaluationFailed, match="occur twice"):
        evaluate(echo, right_on("0"), items * 2)


def test_undecided_answers_are_neither_right_nor_wrong(make_items: Callable) -> None:
    items = make_items("skill:add", ("add",), 4) + make_items("skill:sub", ("sub",), 2)
    found = evaluate(
        echo, lambda item, answer: None if item.stratum == "skill:sub" else answer.endswith("0"), items
    )
    assert (
        found.accuracy() == 0.25
        and found.accuracy_by_skill() == {"add": 0.25}
        and found.undecided() == pytest.approx(2 / 6)
    )
    assert Evaluation.model_validate_json(found.model_dump_json()) == found
    with pytest.raises(EvaluationFailed, match="none of 6 items could be graded"):
        evaluate(echo, lambda item, answer: None, items).accuracy()


def test_sampled_answers_become_a_share(make_items: Callable) -> None:
    asked: list[str] = []

    def sampled(questions: Sequence[str]) -> list[str]:
        asked.extend(questions)
        return ["right", "wrong", "odd", "right"] * (len(questions) // 4)

    items = make_items("skill:add", ("add",), 2)
    found = evaluate(
        sampled, lambda item, answer: None if answer == "odd" else answer == "right", items, samples=4
    )
    assert asked == [item.question for item in items for _ in range(4)]
    assert [outcome.correct for outcome in found.outcomes] == [pytest.approx(2 / 3)] * 2
    assert found.undecided() == 0.25
    assert Evaluation.model_validate_json(found.model_dump_json()) == found


def test_stored_outcomes_are_shares(make_items: Callable) -> None:
    text = evaluate(echo, right_on("0"), make_items("skill:add", ("add",), 2)).model_dump_json()
    assert Evaluation.model_validate_json(text.replace('"correct":true', '"correct":0.5')).accuracy() == 0.25
    for odd in ("NaN", "1.5", '"yes"'):
        with pytest.raises(ValidationError):
            Evaluation.model_validate_json(text.replace('"correct":true', f'"correct":{odd}'))
