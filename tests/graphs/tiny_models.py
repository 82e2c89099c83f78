"""Builds tiny random chat models (Llama, Qwen3) in Hugging Face format, with a byte-level tokenizer and a
chat template.

Usage: tiny_models.py ARCH FOLDER. Their replies are noise: what they test is the way there and back.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from graphs.chat import prompts

CONTEXT_TOKENS = 4096
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SIZES = {
    "vocab_size": 1024,
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,  # vLLM on CPU has no kernel for 16
    "max_position_embeddings": CONTEXT_TOKENS,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE, trained on our own prompts."""
    asks = [
        prompts.solve("What is 2 + 3?"),
        prompts.diagnose("q", "a", ["addition"]),
        prompts.label("q", ["addition"]),
    ]
    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    special = ["<|im_start|>", "<|im_end|>", "<|pad|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZES["vocab_size"], special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bare.train_from_iterator([text for ask in asks for _, text in ask.messages], trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=bare, bos_token=special[0], eos_token=special[1], pad_token=special[2]
    )
    made.chat_template = TEMPLATE
    return made


def build(arch: str, folder: Path) -> None:
    """Write the model and its tokenizer to `folder`."""
    torch.manual_seed(0)
    model = (
        LlamaForCausalLM(LlamaConfig(**SIZES)) if arch == "llama" else Qwen3ForCausalLM(Qwen3Config(**SIZES))
    )
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)


if __name__ == "__main__":
    build(sys.argv[1], Path(sys.argv[2]))
