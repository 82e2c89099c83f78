"""Process reward models of both families, on tiny random models: one pass gives what asking step by step
gives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForTokenClassification

from serving.engine import EngineError
from serving.step_rewards import RewardModel

QUESTION = "add 1 and 2"
STEPS = ["1 + 2 is 3", "the 3 is = 3 .", "3"]
TURN = "{% for turn in messages %}{{ turn['role'] }} : {{ turn['content'] }} <eos> {% endfor %}"
TEMPLATE = TURN + "{% if add_generation_prompt %}assistant : {% endif %}"


@pytest.fixture
def causal(base: Path, tmp_path: Path) -> Path:
    """A chat model that can be asked for verdicts."""
    AutoModelForCausalLM.from_pretrained(base).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def make_classifier(base: Path, tmp_path: Path) -> Any:
    def make(labels: int = 2) -> Path:
        torch.manual_seed(3)
        shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        tokenizer = AutoTokenizer.from_pretrained(base)
        config = LlamaConfig(
            vocab_size=len(tokenizer), num_labels=labels, max_position_embeddings=64, **shape
        )
        LlamaForTokenClassification(config).save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        return tmp_path

    return make


def asked_one_by_one(folder: Path, steps: Sequence[str]) -> list[float]:
    """The published way: a chat per step, the probability of + against - as the next token."""
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    plus, minus = tokenizer.convert_tokens_to_ids(["+", "-"])
    turns: list[dict[str, str]] = []
    found = []
    for at, step in enumerate(steps):
        turns += [
            {"role": "user", "content": f"{QUESTION} {step}" if at == 0 else step},
            {"role": "assistant", "content": "+"},
        ]
        text = tokenizer.apply_chat_template(turns, tokenize=False)
        tokens = tokenizer(text, return_tensors="pt")["input_ids"]
        logits = model(tokens).logits[0, -3]  # before "+" and the end of the turn
        found.append(float(logits[[minus, plus]].softmax(-1)[1].detach()))
    return found


def test_one_pass_gives_what_a_chat_per_step_gives(causal: Path) -> None:
    rewards = RewardModel(causal, device="cpu")(QUESTION, STEPS)
    assert rewards == pytest.approx(asked_one_by_one(causal, STEPS), abs=1e-5)
    assert len(set(rewards)) == len(STEPS)


def test_a_step_is_judged_without_sight_of_later_ones(make_classifier: Any) -> None:
    model = RewardModel(make_classifier(), device="cpu")
    rewards = model(QUESTION, STEPS)
    assert rewards is not None and len(rewards) == 3 and all(0 < reward < 1 for reward in rewards)
    assert model(QUESTION, STEPS[:2]) == pytest.approx(rewards[:2], abs=1e-5)


def test_a_solution_that_is_too_long_is_nobody_s_to_judge(causal: Path) -> None:
    assert RewardModel(causal, device="cpu")(QUESTION, ["1 + 1 " * 100]) is None


def test_what_is_no_reward_model_is_refused(base: Path, make_classifier: Any, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no chat template"):
        RewardModel(base)
    with pytest.raises(EngineError, match="3 labels"):
        RewardModel(make_classifier(3))
    with pytest.raises(EngineError, match="cannot be loaded"):
        RewardModel(tmp_path / "nothing")
