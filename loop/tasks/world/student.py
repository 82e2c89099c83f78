"""The demo's student: a causal language model of about half a million parameters, pretrained here in a few
minutes.

`python -m loop.tasks.world.student --arch llama` rebuilds the shipped weights from nothing but a seed; no
download. The prompt is the question as it is, the completion its worked solution; operands come from the pool
split only. Recipe and figures: docs/student.md.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from random import Random

import torch
from rich.progress import Progress
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from loop.tasks.student import ARCHITECTURES, student_dir
from loop.tasks.world.skills import TABLE
from loop.tasks.world.world import ORIGINAL, draw

log = logging.getLogger(__name__)

_PAD, _BOS, _EOS, _UNK = "<pad>", "<bos>", "<eos>", "<unk>"
_WORDS = r"->|[a-z]+|[0-9]|\n|[^\sa-z0-9]"
_IGNORED = -100


@dataclass(frozen=True)
class Recipe:
    """How a student is pretrained. Lengths in tokens; `muon_lr` for matrices, `adam_lr` for everything
    else."""

    steps: int = 1300
    batch: int = 64
    row: int = 128
    muon_lr: float = 0.02
    adam_lr: float = 3e-3
    warmup: int = 50
    seed: int = 0


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of words, single digits and signs. White space in the input is dropped except line ends.

    Decoding joins tokens without spaces, which gives worked solutions back exactly.
    """
    pattern = pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True)
    texts = [form for skill in TABLE for form in (skill.name, *skill.forms, skill.unseen_form or "")]
    texts += [
        "it first next then ? ; , : -> + - * / % = < > r | . # 0123456789 \n",
        "what is compute find the result after before of with",
    ]
    words = {
        word.removeprefix("{").removesuffix("}")
        for text in texts
        for word, _ in pattern.pre_tokenize_str(text)
    } - {"", *"{}bcd"}
    vocabulary = {word: index for index, word in enumerate([_PAD, _BOS, _EOS, _UNK, *sorted(words)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=_UNK))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pattern
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=_PAD,
        bos_token=_BOS,
        eos_token=_EOS,
        unk_token=_UNK,
        padding_side="left",
        model_max_length=512,
    )


def build_model(arch: str, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """A freshly initialized student. Raises ValueError for an unknown architecture."""
    shape: dict[str, float] = {
        "vocab_size": len(tokenizer), "hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 5,
        "num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 32, "max_position_embeddings": 512,
        "tie_word_embeddings": True, "rms_norm_eps": 1e-5, "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
    }  # fmt: skip
    if arch == "llama":
        return LlamaForCausalLM(LlamaConfig(**shape))
    if arch == "qwen":
        return Qwen3ForCausalLM(Qwen3Config(**shape))
    raise ValueError(f"unknown architecture {arch!r}: choose one of {', '.join(ARCHITECTURES)}")


def pack(pairs: Sequence[tuple[list[int], list[int]]], row: int, pad: int) -> dict[str, Tensor]:
    """Pack (prompt, completion) token lists into rows: input_ids, position_ids, labels, each of shape (rows,
    row).

    Positions restart with each example, which keeps examples of one row from seeing each other.
    """
    rows: list[list[tuple[list[int], list[int]]]] = []
    free: list[int] = []
    for pair in sorted(pairs, key=lambda pair: -len(pair[0]) - len(pair[1])):
        size = len(pair[0]) + len(pair[1])
        index = next((i for i, room in enumerate(free) if room >= size), len(rows))
        if index == len(rows):
            rows.append([])
            free.append(max(row, size))
        rows[index].append(pair)
        free[index] -= size
    width = max(sum(len(p) + len(c) for p, c in packed) for packed in rows)
    ids, positions, labels = (torch.full((len(rows), width), fill) for fill in (pad, 0, _IGNORED))
    for r, packed in enumerate(rows):
        at = 0
        for prompt, completion in packed:
            end = at + len(prompt) + len(completion)
            ids[r, at:end] = torch.tensor(prompt + completion)
            positions[r, at:end] = torch.arange(end - at)
            labels[r, at + len(prompt) : end] = torch.tensor(completion)
            at = end
        positions[r, at:] = torch.arange(width - at)
    return {"input_ids": ids, "position_ids": positions, "labels": labels}


def batches(tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> Iterator[dict[str, Tensor]]:
    """Endless packed batches of the original mixture, the same for the same seed."""
    pattern = tokenizer.backend_tokenizer.pre_tokenizer
    vocabulary = tokenizer.get_vocab()

    def encode(text: str) -> list[int]:
        return [vocabulary[word] for word, _ in pattern.pre_tokenize_str(text)]

    index = count()
    while True:
        problems = [
            draw(Random(f"pretrain:{recipe.seed}:{next(index)}"), ORIGINAL, "pool")
            for _ in range(recipe.batch)
        ]
        pairs = [(encode(p.question), [*encode(p.solution), tokenizer.eos_token_id]) for p in problems]
        yield pack(pairs, recipe.row, tokenizer.pad_token_id)


def pretrain(arch: str, recipe: Recipe) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Train a student from scratch with Muon on matrices and AdamW on the rest; shows a progress bar."""
    torch.manual_seed(recipe.seed)
    tokenizer = build_tokenizer()
    model = build_model(arch, tokenizer)
    inner = {id(p) for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name}
    matrices = [p for p in model.parameters() if id(p) in inner]
    others = [p for p in model.parameters() if id(p) not in inner]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=recipe.muon_lr, weight_decay=0.0),
        torch.optim.AdamW(others, lr=recipe.adam_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, lambda step: _rate(step, recipe)) for o in optimizers]
    model.train()
    with Progress() as progress:
        task = progress.add_task(f"pretraining {arch}", total=recipe.steps)
        for step, batch in zip(range(recipe.steps), batches(tokenizer, recipe), strict=False):
            loss = model(**batch, use_cache=False).loss
            loss.backward()
            for part in (*optimizers, *schedules):
                part.step()
            model.zero_grad(set_to_none=True)
            progress.update(task, advance=1)
            if step % 100 == 0:
                log.info("step %d of %d: loss %.4f", step, recipe.steps, loss.item())
    return model.eval(), tokenizer


def _rate(step: int, recipe: Recipe) -> float:
    return min((step + 1) / recipe.warmup, (recipe.steps - step) / recipe.steps)


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """Write weights as float16 safetensors, configuration and tokenizer, loadable by
    `from_pretrained(directory)`."""
    directory.mkdir(parents=True, exist_ok=True)
    model.to(torch.float16).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def main() -> None:
    """Pretrain a student and write it to `students/<arch>`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--arch", choices=ARCHITECTURES, default="llama")
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument(
        "--threads", type=int, default=1, help="1 makes the weights repeatable and is fastest on shared cores"
    )
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    torch.set_num_threads(options.threads)
    model, tokenizer = pretrain(options.arch, Recipe(steps=options.steps, seed=options.seed))
    directory = options.out or student_dir(options.arch)
    save(model, tokenizer, directory)
    log.info("wrote %d parameters to %s", model.num_parameters(), directory)


if __name__ == "__main__":
    main()
