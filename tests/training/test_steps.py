"""A step of ours is a step of stock TRL on the same examples, packed or not, recomputed or not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer

from agent.items import Example
from training.encode import batch_plan, encode
from training.settings import SftSettings
from training.sft import SftTrainer
from training.trainer import TrainedAdapter, TrainingJob

STEPS, BATCH, SEED = 10, 8, 5
SETTINGS = SftSettings(lora_r=4, lora_alpha=8, lr=5e-3, save_every=0, report_every=1)


@pytest.fixture(scope="module")
def examples(make_examples: Callable[[int], list[Example]]) -> list[Example]:
    return make_examples(60)


def train(base: Path, examples: list[Example], out: Path, **changes: object) -> TrainedAdapter:
    job = TrainingJob(base, None, examples, out, STEPS, BATCH, 64, SEED)
    return SftTrainer(SETTINGS.model_copy(update=changes)).train(job)


def stock(base: Path, examples: list[Example], out: Path) -> list[float]:
    """Losses of TRL's own trainer with its defaults, in single precision, on our examples in our order."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = encode(examples, tokenizer, 64)
    order = batch_plan([len(row.input_ids) for row in rows], STEPS, BATCH, SEED)
    data = {"input_ids": [rows[i].input_ids for i in order], "labels": [rows[i].labels for i in order]}
    config = SFTConfig(
        output_dir=str(out), max_steps=STEPS, per_device_train_batch_size=BATCH, learning_rate=SETTINGS.lr,
        lr_scheduler_type="cosine", warmup_steps=SETTINGS.warmup_ratio, seed=SEED, logging_steps=1,
        bf16=False, use_cpu=True, train_sampling_strategy="sequential", report_to="none", disable_tqdm=True,
        save_strategy="no", dataloader_pin_memory=False,
    )  # fmt: skip
    lora = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = SFTTrainer(
        model=str(base), args=config, train_dataset=Dataset.from_dict(data), peft_config=lora
    )
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_the_loss_at_each_step_is_that_of_stock_trl(
    llama: Path, examples: list[Example], tmp_path: Path
) -> None:
    ours = train(llama, examples, tmp_path / "ours")
    theirs = stock(llama, examples, tmp_path / "theirs")
    assert [point.loss for point in ours.curve] == pytest.approx(theirs, abs=2e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"packing": True},
        {"micro_batch_size": 1},
        {"gradient_checkpointing": True},
        {"packing": True, "micro_batch_size": 1},
    ],
    ids=["packed", "small", "recomputed", "packed and small"],
)
@pytest.mark.parametrize("arch", ["llama", "qwen"])
def test_however_a_step_is_computed_it_is_the_same_step(
    arch: str,
    changes: dict[str, object],
    request: pytest.FixtureRequest,
    examples: list[Example],
    tmp_path: Path,
) -> None:
    base = request.getfixturevalue(arch)
    plain, changed = train(base, examples, tmp_path / "a"), train(base, examples, tmp_path / "b", **changes)
    losses = [[point.loss for point in result.curve] for result in (plain, changed)]
    assert losses[0] == pytest.approx(losses[1], abs=2e-5)
    left, right = (load_file(result.adapter_dir / "adapter_model.safetensors") for result in (plain, changed))
    assert max(float((left[name] - right[name]).abs().max()) for name in left) < 1e-3
    assert torch.is_tensor(next(iter(left.values()))) and plain.tokens == changed.tokens
