"""Tiny random students: a Llama and a Qwen3 with a 40-word vocabulary."""

from __future__ import annotations

from pathlib import Path

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
# One head of 32: vLLM has no kernel for less on a CPU.
SHAPE = {
    "vocab_size": len(WORDS), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 1, "num_key_value_heads": 1, "max_position_embeddings": 128, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip


def build_student(directory: Path, arch: str) -> Path:
    """Write the `arch` ("llama" or "qwen") student and its tokenizer to `directory`; the same each time."""
    torch.manual_seed(7)
    if arch == "llama":
        model = LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True))
    else:
        model = Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=32))
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


def random_adapter(
    base: Path, directory: Path, seed: int, scale: float = 0.5, targets: str | list[str] = "all-linear"
) -> Path:
    """Write an adapter of rank 4 for `base` to `directory`; `scale` 0 changes nothing."""
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
