"""One round of one contender in a process of its own; prints its figures as JSON (`benchmarks.round`)."""

from __future__ import annotations

import bisect
import json
import math
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
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
    TrainerCallback,
)
from trl import SFTConfig, SFTTrainer

from agent.items import Example, Provenance
from loop.tasks.student import chat_prompt, student_dir
from loop.tasks.world.world import SKILLS, pool
from training.encode import batch_plan, encode
from training.loading import memory_plan
from training.micro import positions
from training.settings import SftSettings
from training.sft import SftTrainer
from training.steps import MICRO_BATCHES, step_rows
from training.trainer import TrainingJob

# (hidden, layers, heads, key-value heads, feed-forward)
SHAPES = {
    "tiny": (32, 2, 2, 2, 64), "50m": (512, 12, 8, 8, 1536), 
    "0.6b": (1024, 28, 16, 8, 3072), "4b": (2560, 36, 32, 8, 9728),
    "8b": (4096, 36, 32, 8, 12288),
}  # fmt: skip
# Words and signs in the solutions of MATH train: the length below which each share of them lies.
SHARES = (0.0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
LENGTHS = (8, 31, 47, 60, 81, 102, 128, 157, 193, 248, 329, 495, 663, 1067)
WORDS = 8000
MAX_LENGTH = 1024
QLORA_LENGTH = 2048
PROBES = 32
STATUS = Path("/proc/self/status")
LR = 2e-4
SETTINGS = SftSettings(lr=LR, save_every=0, report_every=1)
Figures = dict[str, Any]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def main(contender: str, model: str, folder: str, *size: str) -> Figures:
    """Train and measure; as the contender `base` write the student and say what it can be compared with."""
    base = student_dir("llama") if model == "shipped" else Path(folder) / "base"
    if contender == "base":
        return _base(model, base)
    steps, batch, seed = map(int, size)
    examples = shipped(base) if model == "shipped" else random_examples()
    long = contender == "skillloop-qlora"
    with tempfile.TemporaryDirectory(dir=folder) as out:
        job = TrainingJob(
            base, None, examples, Path(out), steps, batch, QLORA_LENGTH if long else MAX_LENGTH, seed
        )
        began = time.monotonic()
        with peak_mib() as peak:
            run = _stock(job, contender) if contender.startswith("trl") else _ours(job, contender)
        outside_s = time.monotonic() - began - run.training_s
        student = run.student()
        weights = sum(weight.numel() for name, weight in student.named_parameters() if "lora_" not in name)
        return {
            "tokens_per_s": run.tokens / run.training_s,
            "tokens_per_cpu_s": run.tokens / run.cpu_s,
            "padding": 1 - run.tokens / run.positions,
            "peak_mib": max(peak),
            "training_s": run.training_s,
            "outside_s": outside_s,
            "flops_per_s": 4 * weights * run.tokens / run.training_s,
            "loss": probe_loss(student, base, examples),
        }


@dataclass(frozen=True)
class Run:
    """A measured round: useful tokens and positions with padding, seconds, processor seconds, and what loads
    the trained student."""

    tokens: int
    positions: int
    training_s: float
    cpu_s: float
    student: Callable[[], Any]


@contextmanager
def peak_mib() -> Iterator[list[float]]:
    """What a block needs of the device, as the largest number of the list: on CUDA what was allocated, on a
    CPU the process's own memory (`RssAnon`, every 20 ms), since the kernel may take back mapped files."""
    seen, done = [0.0], threading.Event()

    def look() -> None:
        while not done.wait(0.02):
            status = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
            seen.append(int(status["RssAnon"].split()[0]) / 1024)

    watch = threading.Thread(target=look)
    if DEVICE == "cpu":
        watch.start()
    try:
        yield seen
    finally:
        done.set()
        if DEVICE == "cuda":
            seen.append(torch.cuda.max_memory_allocated() / 2**20)
        else:
            watch.join()


def _base(model: str, base: Path) -> Figures:
    contenders = ["skillloop", "trl"]
    if DEVICE == "cpu":
        contenders.append("trl-fp32")
    else:
        contenders += ["skillloop-packed", *(["skillloop-qlora"] if model == "8b" else [])]
    if model != "shipped":
        random_student(model, base)
    return {
        "device": torch.cuda.get_device_name()
        if DEVICE == "cuda"
        else f"{torch.get_num_threads()} CPU threads",
        "contenders": contenders,
        "ceiling": ceiling(),
        "parameters": AutoModelForCausalLM.from_pretrained(base).num_parameters(),
    }


def _settings(contender: str) -> SftSettings:
    if contender == "skillloop-packed":
        flash = "flash_attention_2" if find_spec("flash_attn") else None
        return SETTINGS.model_copy(update={"packing": True, "attention": flash})
    if contender == "skillloop-qlora":
        return SETTINGS.model_copy(update={"qlora": True, "micro_batch_size": 1})
    return SETTINGS


def _ours(job: TrainingJob, contender: str) -> Run:
    settings = _settings(contender)
    marks: list[float] = []
    result = SftTrainer(settings).train(job, lambda step, total, loss: marks.append(time.process_time()))
    rows = encode(job.examples, AutoTokenizer.from_pretrained(job.base_dir), job.max_length)
    lengths = [len(row.input_ids) for row in rows]
    order = batch_plan(lengths, job.steps, job.batch_size, job.seed)
    memory = memory_plan(settings, job.base_dir, job.max_length, job.batch_size)
    planned = step_rows(rows, order, job.batch_size, memory.tokens, 1, settings.packs)
    filled = sum(
        positions(micro, lengths, packed=settings.packs) for step in planned for micro in step[MICRO_BATCHES]
    )

    def student() -> Any:
        base = AutoModelForCausalLM.from_pretrained(job.base_dir, dtype=getattr(torch, memory.dtype))
        base.load_adapter(str(result.adapter_dir))
        return base

    return Run(result.tokens, filled, result.seconds, _steady(marks), student)


def _steady(marks: Sequence[float]) -> float:
    """Processor seconds of all steps by the marks at their ends; the first step is taken to have cost as much
    as the others. Needs two steps."""
    return (marks[-1] - marks[0]) * len(marks) / (len(marks) - 1)


class _Marks(TrainerCallback):  # type: ignore[misc]
    """Processor seconds at the end of each step."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def on_step_end(self, *_: object, **__: object) -> None:
        self.at.append(time.process_time())


def _stock(job: TrainingJob, contender: str) -> Run:
    """TRL's defaults, but for what must be equal: batch, learning rate and its schedule, LoRA's shape,
    seed."""
    config = SFTConfig(
        output_dir=str(job.out_dir),
        max_steps=job.steps,
        per_device_train_batch_size=min(8, job.batch_size),
        gradient_accumulation_steps=max(1, job.batch_size // 8),
        learning_rate=LR,
        lr_scheduler_type="cosine",
        warmup_steps=SETTINGS.warmup_ratio,
        seed=job.seed,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=DEVICE == "cpu",
        dataloader_pin_memory=DEVICE == "cuda",
        **({"bf16": False} if contender == "trl-fp32" else {}),
    )
    lora = LoraConfig(
        r=SETTINGS.lora_r,
        lora_alpha=SETTINGS.lora_alpha,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    rows = [{"prompt": example.prompt, "completion": example.completion} for example in job.examples]
    trainer = SFTTrainer(
        model=str(job.base_dir), args=config, train_dataset=Dataset.from_list(rows), peft_config=lora
    )
    collate, sizes, marks = trainer.data_collator, list[tuple[int, int]](), _Marks()
    trainer.add_callback(marks)

    def counted(features: Any) -> Any:
        batch = collate(features)
        sizes.append((int(batch["attention_mask"].sum()), batch["input_ids"].numel()))
        return batch

    trainer.data_collator = counted
    began = time.monotonic()
    trainer.train()
    training_s = time.monotonic() - began
    used = sizes[: job.steps * config.gradient_accumulation_steps]  # a batch too many is fetched ahead
    tokens, filled = (sum(numbers) for numbers in zip(*used, strict=True))
    return Run(tokens, filled, training_s, _steady(marks.at), lambda: trainer.model)


def probe_loss(model: Any, base: Path, examples: Sequence[Example]) -> float:
    """Mean loss a completion token on the first examples."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = model.to(DEVICE).eval()
    total = count = 0.0
    with torch.no_grad():
        for row in encode(examples[:PROBES], tokenizer, MAX_LENGTH):
            ids, labels = (torch.tensor([values], device=DEVICE) for values in (row.input_ids, row.labels))
            wanted = int((labels[:, 1:] != -100).sum())
            total += float(model(input_ids=ids, labels=labels).loss) * wanted
            count += wanted
    return total / count


def ceiling() -> float:
    """Floating-point operations a second of a large matrix product, at best."""
    size, dtype = 2048, torch.bfloat16 if DEVICE == "cuda" else torch.float32
    left, right = (torch.randn(size, size, device=DEVICE, dtype=dtype) for _ in range(2))
    best = math.inf
    for _ in range(5 if DEVICE == "cpu" else 50):
        began = time.monotonic()
        left @ right
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.monotonic() - began)
    return 2 * size**3 / best


def shipped(base: Path) -> list[Example]:
    """1,500 of the demo's examples."""
    prompt = _prompts(base)
    items = pool(0, dict.fromkeys(SKILLS, 100))
    return [_example(n, prompt(item.question), item.solution) for n, item in enumerate(items)]


def random_student(model: str, folder: Path) -> None:
    """A Llama of that shape with random weights."""
    hidden, layers, heads, pairs, inner = SHAPES[model]
    torch.manual_seed(0)
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


def random_examples() -> list[Example]:
    """1,500 examples of random words, as long as those of MATH."""
    rng = random.Random(0)

    def text(length: int) -> str:
        return " ".join(f"w{rng.randrange(40)}" for _ in range(length))

    return [_example(n, text(rng.randint(20, 80)), text(_length(rng.random()))) for n in range(1500)]


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
    print(json.dumps(main(*sys.argv[1:])))
