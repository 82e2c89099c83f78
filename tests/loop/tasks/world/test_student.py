"""The shipped students: they load without a network, answer as documented, and their tokenizer survives any
text."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from loop.tasks.student import ARCHITECTURES, student_dir
from loop.tasks.world.student import (
    Recipe,
    build_tokenizer,
    pretrain,
    save,
)
from loop.tasks.world.world import RARE, SKILLS, grade, held_out, pool

MASTERED = {"skill:add", "skill:sub", "skill:mul", "skill:div", "skill:max", "skill:unit"}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def shipped(request: pytest.FixtureRequest) -> tuple[Any, Any, Path]:
    directory = student_dir(request.param)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, local_files_only=True)
    return model.eval(), AutoTokenizer.from_pretrained(directory, local_files_only=True), directory


def answers(model: Any, tokenizer: Any, questions: list[str]) -> list[str]:
    batch = dict(tokenizer(questions, return_tensors="pt", padding=True))
    with torch.inference_mode():
        out = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=112,
            do_sample=False,
        )
    return list(tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True))


def accuracy(model: Any, tokenizer: Any, strata: set[str], per_stratum: int) -> float:
    items = [
        item
        for stratum in sorted(strata)
        for item in [i for i in held_out("exam") if i.stratum == stratum][:per_stratum]
    ]
    told = answers(model, tokenizer, [item.question for item in items])
    return sum(grade(item.answer, answer) for item, answer in zip(items, told, strict=True)) / len(items)


def test_the_shipped_files_are_small_and_safe(shipped: tuple[Any, Any, Path]) -> None:
    model, _, directory = shipped
    files = [Path(folder) / name for folder, _, names in os.walk(directory) for name in names]
    assert sum(file.stat().st_size for file in files) <= 3_000_000
    assert {file.suffix for file in files} <= {".safetensors", ".json", ".jinja"}
    assert 500_000 <= model.num_parameters() <= 1_000_000


def test_the_base_is_as_good_and_as_lacking_as_documented(shipped: tuple[Any, Any, Path]) -> None:
    model, tokenizer, _ = shipped
    assert accuracy(model, tokenizer, MASTERED, 12) >= 0.94
    assert 0.05 <= accuracy(model, tokenizer, {f"skill:{name}" for name in RARE}, 12) <= 0.5


def test_left_padding_changes_no_answer(shipped: tuple[Any, Any, Path]) -> None:
    model, tokenizer, _ = shipped
    questions = [item.question for item in held_out("exam")[::150]]
    assert answers(model, tokenizer, questions) == [
        answers(model, tokenizer, [question])[0] for question in questions
    ]


@pytest.mark.parametrize("skill", SKILLS)
def test_worked_solutions_survive_the_tokenizer(skill: str) -> None:
    tokenizer = build_tokenizer()
    for item in pool(0, {skill: 40}):
        ids = tokenizer(item.question + item.solution)["input_ids"]
        assert tokenizer(item.question)["input_ids"] + tokenizer(item.solution)["input_ids"] == ids
        assert tokenizer.unk_token_id not in ids
        assert (
            tokenizer.decode(tokenizer(item.solution)["input_ids"], skip_special_tokens=True) == item.solution
        )


@settings(max_examples=100, deadline=None)
@given(text=st.text())
def test_any_text_can_be_encoded_and_decoded(text: str) -> None:
    tokenizer = build_tokenizer()
    assert isinstance(tokenizer.decode(tokenizer(text)["input_ids"]), str)


def test_pretraining_is_repeatable_and_its_weights_load(tmp_path: Path) -> None:
    recipe = Recipe(steps=3, batch=4)
    (first, tokenizer), (second, _) = pretrain("llama", recipe), pretrain("llama", recipe)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    save(first, tokenizer, tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).num_parameters() == first.num_parameters()
    assert AutoTokenizer.from_pretrained(tmp_path).get_vocab() == tokenizer.get_vocab()


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(ValueError, match="llama, qwen"):
        student_dir("mamba")
