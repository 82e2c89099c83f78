"""Tiny random students to train: a Llama and a Qwen3 with a 40-word vocabulary, built once per session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from agent.items import Example, HeldOutItem, Provenance

torch.set_num_threads(1)
WORDS = [
    "<pad>",
    "<bos>",
    "<eos>",
    "<unk>",
    *"0123456789",
    *"+-*/=;:,.?",
    "add",
    "sub",
    "mul",
    "of",
    "and",
    "the",
    "is",
]
SHAPE = {
    "vocab_size": len(WORDS), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip


def build_student(directory: Path, arch: str) -> Path:
    torch.manual_seed(7)
    if arch == "llama":
        model = LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True))
    else:
        model = Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=16))
    backend = Tokenizer(
        models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_student(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="session")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_student(tmp_path_factory.mktemp("qwen"), "qwen")


@pytest.fixture(scope="session")
def make_examples() -> Callable[..., list[Example]]:
    def make(count: int, skill: str = "add", strategy: str = "select") -> list[Example]:
        return [
            Example(
                example_id=f"{strategy}-{skill}-{i}",
                prompt=f"add {i % 10} and {i // 10 % 10} {i // 100} ?",
                completion=" ".join(str((i + k) % 10) for k in range(1 + i % 7)),
                skills=(skill,),
                provenance=Provenance(strategy=strategy, skill=skill, source_ids=(f"pool-{i}",)),
            )
            for i in range(count)
        ]

    return make


@pytest.fixture(scope="session")
def make_items() -> Callable[..., list[HeldOutItem]]:
    def make(stratum: str, skills: tuple[str, ...], count: int) -> list[HeldOutItem]:
        return [
            HeldOutItem(
                item_id=f"{stratum}-{i}",
                question=f"{stratum} question {i}",
                answer=str(i),
                skills=skills,
                stratum=stratum,
            )
            for i in range(count)
        ]

    return make
