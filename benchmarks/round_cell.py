"""One round of one contender in a process of its own; prints its figures as JSON (`benchmarks.round`)."""

from __future__ import annotations

import bisect
import json
import math
import random
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from trl import SFTConfig, SFTTrainer

from agent.items import Example, Provenance
from loop.tasks.student import chat_prompt, student_dir
from loop.tasks.world.world import SKILLS, pool
from training.encode import batch_plan, encode
from training.settings import SftSettings
from training.sft import SftTrainer
from training.trainer import TrainingJob

# (hidden, layers, heads, key-value heads, feed-forward)
SHAPES = {
    "50m": (512, 12, 8, 8, 1536), "0.6b": (1024, 28, 16, 8, 3072), "4b": (2560, 36, 32, 8, 9728),
    "8b": (4096, 36, 32, 8, 12288),
}  # fmt: skip
# Words and signs in the solutions of MATH train: the length below which each share of them lies.
SHARES = (0.0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
LENGTHS = (8, 31, 47, 60, 81, 102, 128, 157, 193, 248, 329, 495, 663, 1067)
WORDS = 8000
MAX_LENGTH = 1024
SEED = 0
LR = 2e-4
SETTINGS = SftSettings(lr=LR, save_every=0)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def main(model: str, contender: str, steps: int, batch: int, folder: Path) -> dict[str, Any]:
    """Train and measure."""
    base, examples = shipped() if model == "shipped" else random_student(model, folder / "base")
    began = time.monotonic()
    job = TrainingJob(base, None, examples, folder / "round", steps, batch, MAX_LENGTH, SEED)
    tokens, positions, training_s, trained = {"skillloop": _ours, "trl": _stock}[contender](job)
    outside_s = time.monotonic() - began - training_s
    peak = (
        torch.cuda.max_memory_allocated() / 2**20
        if DEVICE == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    )
    weights = sum(weight.numel() for weight in trained.parameters())
    return {
        "tokens_per_s": tokens / training_s,
        "padding": 1 - tokens / positions,
        "peak_mib": peak,
        "training_s": training_s,
        "outside_s": outside_s,
        "mfu": 4 * weights * tokens / training_s / ceiling(),
        "loss": probe_loss(trained, base, examples),
        "device": torch.cuda.get_device_name()
        if DEVICE == "cuda"
        else f"{torch.get_num_threads()} CPU threads",
    }


def _ours(job: TrainingJob) -> tuple[int, int, float, Any]:
    marks: list[float] = []
    result = SftTrainer(SETTINGS).train(job, lambda step, total, loss: marks.append(time.monotonic()))
    rows = encode(job.examples, AutoTokenizer.from_pretrained(job.base_dir), job.max_length)
    lengths = [len(row.input_ids) for row in rows]
    plan = [lengths[i] for i in batch_plan(lengths, job.steps, job.batch_size, job.seed)]
    micro = job.batch_size // SETTINGS.micro_batches(job.batch_size)
    positions = sum(micro * max(plan[start : start + micro]) for start in range(0, len(plan), micro))
    base = AutoModelForCausalLM.from_pretrained(job.base_dir, dtype=torch.float32)
    base.load_adapter(str(result.adapter_dir))
    return result.tokens, positions, result.seconds, base


def _stock(job: TrainingJob) -> tuple[int, int, float, Any]:
    """TRL's defaults, but for what must be equal: batch, learning rate, LoRA's shape, seed."""
    config = SFTConfig(
        output_dir=str(job.out_dir),
        max_steps=job.steps,
        gradient_accumulation_steps=max(1, job.batch_size // 8),
        learning_rate=LR,
        seed=job.seed,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    rows = [{"prompt": example.prompt, "completion": example.completion} for example in job.examples]
    trainer = SFTTrainer(
        model=str(job.base_dir),
        args=config,
        train_dataset=Dataset.from_list(rows),
        peft_config=LoraConfig(
            r=SETTINGS.lora_r,
            lora_alpha=SETTINGS.lora_alpha,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
    )
    began = time.monotonic()
    trainer.train()
    training_s = time.monotonic() - began
    tokens = positions = 0
    loader, batches = iter(trainer.get_train_dataloader()), job.steps * config.gradient_accumulation_steps
    for _ in range(batches):
        try:
            batch = next(loader)
        except StopIteration:
            loader = iter(trainer.get_train_dataloader())
            batch = next(loader)
        tokens += int(batch["attention_mask"].sum())
        positions += batch["input_ids"].numel()
    return tokens, positions, training_s, trainer.model


def probe_loss(model: Any, base: Path, examples: Sequence[Example]) -> float:
    """Mean loss a completion token on the first 64 examples."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = model.to(DEVICE).eval()
    total = count = 0.0
    with torch.no_grad():
        for row in encode(examples[:64], tokenizer, MAX_LENGTH):
            ids, labels = (torch.tensor([values], device=DEVICE) for values in (row.input_ids, row.labels))
            wanted = int((labels[:, 1:] != -100).sum())
            total += float(model(input_ids=ids, labels=labels).loss) * wanted
            count += wanted
    return total / count


def ceiling() -> float:
    """Floating-point operations a second of a large matrix product, the best of ten."""
    size, dtype = 2048, torch.bfloat16 if DEVICE == "cuda" else torch.float32
    left, right = (torch.randn(size, size, device=DEVICE, dtype=dtype) for _ in range(2))
    best = math.inf
    for _ in range(10):
        began = time.monotonic()
        for _ in range(3):
            left @ right
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        best = min(best, (time.monotonic() - began) / 3)
    return 2 * size**3 / best


def shipped() -> tuple[Path, list[Example]]:
    """The demo's Llama and 1,500 of its examples."""
    base = student_dir("llama")
    prompt = _prompts(base)
    items = pool(SEED, dict.fromkeys(SKILLS, 100))
    return base, [_example(n, prompt(item.question), item.solution) for n, item in enumerate(items)]


def random_student(model: str, folder: Path) -> tuple[Path, list[Example]]:
    """A Llama of that shape with random weights, and 1,500 examples of random words."""
    hidden, layers, heads, pairs, inner = SHAPES[model]
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=pairs, intermediate_size=inner, max_position_embeddings=2 * MAX_LENGTH,
        head_dim=hidden // heads, bos_token_id=1, eos_token_id=2, pad_token_id=0, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.device(DEVICE):
        student = LlamaForCausalLM(config)
    student.to(torch.bfloat16 if DEVICE == "cuda" else torch.float32).save_pretrained(folder)
    words = ["<pad>", "<bos>", "<eos>", "<unk>", *(f"w{n}" for n in range(WORDS - 4))]
    backend = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    ).save_pretrained(folder)
    rng = random.Random(SEED)

    def text(length: int) -> str:
        return " ".join(f"w{rng.randrange(40)}" for _ in range(length))

    return folder, [_example(n, text(rng.randint(20, 80)), text(_length(rng.random()))) for n in range(1500)]


def _length(share: float) -> int:
    place = min(bisect.bisect_right(SHARES, share), len(SHARES) - 1)
    below, above = SHARES[place - 1], SHARES[place]
    weight = min(1.0, (share - below) / (above - below))
    return min(round(LENGTHS[place - 1] + weight * (LENGTHS[place] - LENGTHS[place - 1])), MAX_LENGTH - 100)


def _prompts(base: Path) -> Callable[[str], str]:
    tokenizer = AutoTokenizer.from_pretrained(base)
    return lambda question: chat_prompt(tokenizer, question)


def _example(number: int, prompt: str, completion: str) -> Example:
    origin = Provenance(strategy="select", skill=None, source_ids=())
    return Example(example_id=str(number), prompt=prompt, completion=completion, skills=(), provenance=origin)


if __name__ == "__main__":
    name, contender, steps, batch, folder = sys.argv[1:]
    print(json.dumps(main(name, contender, int(steps), int(batch), Path(folder))))
