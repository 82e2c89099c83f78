"""Tiny random students and adapters to serve: a Llama and a Qwen3 with a 40-word vocabulary, built once per
session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

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


@pytest.fixture(scope="session", params=["llama", "qwen"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(7)
    if request.param == "llama":
        model = LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True))
    else:
        model = Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=16))
    backend = Tokenizer(
        models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    model.save_pretrained(directory)
    PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    ).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def make_adapter(base: Path) -> Callable[..., Path]:
    def make(directory: Path, seed: int, scale: float = 0.5, targets: str | list[str] = "all-linear") -> Path:
        torch.manual_seed(seed)
        model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(base),
            LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM"),
        )
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.data.normal_(0, scale) if scale else weight.data.zero_()
        model.save_pretrained(directory)
        return directory

    return make
