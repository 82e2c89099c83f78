"""The plan for bases of four sizes on four devices; and layers keep what the plan reckons with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from training.errors import TrainingError
from training.loading import memory_plan
from training.memory import KEPT, Device, ModelShape, plan
from training.settings import SftSettings
from training.sft import SftTrainer

SHAPES = {  # the shipped Llama, Qwen3 0.6B and 4B, Llama 3.1 8B
    "0.5m": ModelShape(449_952, 96, 4, 70, 7_296),
    "0.6b": ModelShape(596_042_752, 1024, 28, 151_936, 630_784),
    "4b": ModelShape(4_022_458_880, 2560, 36, 151_936, 2_064_384),
    "8b": ModelShape(8_030_261_248, 4096, 32, 128_256, 2_621_440),
}
GB = 1e9
CARD_24, CARD_80, CARD_141 = 25.3 * GB, 85.0 * GB, 150.1 * GB  # what PyTorch says of a 4090, an H100, an H200


@pytest.mark.parametrize(
    ("size", "device", "memory", "tokens", "kept"),
    [
        ("0.5m", "cuda", CARD_24, 8192, "all"),
        ("0.5m", "cpu", 24 * GB, 7448, "all"),
        ("0.6b", "cuda", CARD_24, 8192, "all"),
        ("0.6b", "cuda", CARD_141, 8192, "all"),
        ("0.6b", "cpu", 24 * GB, 1145, "none"),
        ("4b", "cuda", CARD_24, 8192, "some"),
        ("4b", "cuda", CARD_80, 8192, "all"),
        ("4b", "cuda", CARD_141, 8192, "all"),
        ("8b", "cuda", CARD_24, 6944, "some"),
        ("8b", "cuda", CARD_80, 7128, "all"),
        ("8b", "cuda", CARD_141, 8192, "all"),
    ],
)
def test_the_plan_of_each_size_on_each_device(
    size: str, device: Device, memory: float, tokens: int, kept: str
) -> None:
    chosen = plan(SHAPES[size], SftSettings(), 2048, 8, device, memory)
    assert chosen.fits and not chosen.qlora and chosen.peak < memory
    assert chosen.dtype == ("float32" if device == "cpu" else "bfloat16")
    assert chosen.tokens == tokens
    assert (chosen.kept_tokens >= tokens) == (kept == "all")
    assert (chosen.kept_tokens < 200) == (kept == "none")


def test_what_does_not_fit_is_said_or_quantised() -> None:
    small = plan(SHAPES["8b"], SftSettings(), 2048, 8, "cuda", 17 * GB)
    assert small.qlora and small.fits and small.weights < 6 * GB
    assert not plan(SHAPES["8b"], SftSettings(qlora=False), 2048, 8, "cuda", 17 * GB).fits
    assert not plan(SHAPES["8b"], SftSettings(), 2048, 8, "cpu", 24 * GB).fits
    whole, parts = (plan(SHAPES["8b"], SftSettings(), 2048, 8, "cuda", 17 * GB, n) for n in (1, 4))
    assert whole.qlora and not parts.qlora, "a sharded base needs no NF4"


def test_the_paper_s_recipe_is_within_24_gigabytes() -> None:
    recipe = SftSettings(qlora=True, micro_batch_size=1)
    chosen = plan(SHAPES["8b"], recipe, 2048, 8, "cuda", CARD_24)
    assert chosen.fits and chosen.peak < 24 * GB and chosen.tokens == 2048


def test_what_the_settings_say_is_taken_as_it_is() -> None:
    def chosen(**said: object) -> tuple[str, int, int]:
        made = plan(SHAPES["4b"], SftSettings.model_validate(said), 1024, 16, "cuda", CARD_80)
        return made.dtype, made.tokens, made.kept_tokens

    assert chosen(gradient_checkpointing=True)[2] == 0
    assert chosen(gradient_checkpointing=False)[2] == 16 * 1024
    assert chosen(micro_batch_size=3)[1] == 3 * 1024
    assert chosen(micro_batch_size=99)[1] == 16 * 1024
    assert chosen(dtype="float32")[0] == "float32"


def test_the_plan_in_words() -> None:
    told = plan(SHAPES["8b"], SftSettings(), 2048, 8, "cuda", CARD_80).told()
    assert told == (
        "8.0 B parameters, 16.1 GB in bf16, QLoRA: no, micro-batch 3 (7,128 tokens), layers recomputed:"
        " never, about 75 of 85 GB"
    )


@pytest.mark.parametrize("arch", ["llama", "qwen"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_layers_keep_what_the_plan_reckons_with(
    arch: str, dtype: str, request: pytest.FixtureRequest
) -> None:
    """Numbers kept for each feature of the matrices and token; what is kept once whatever the length, and
    the few numbers of the adapter's rank, weigh more in so small a student."""
    base = AutoModelForCausalLM.from_pretrained(request.getfixturevalue(arch), dtype=getattr(torch, dtype))
    lora = LoraConfig(r=1, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, lora).train()
    layers = [part for name, part in model.named_modules() if name.endswith("base_layer")]
    features = sum(part.in_features + part.out_features for part in layers)
    per_token = (_kept(model, 96, dtype) - _kept(model, 32, dtype)) / 64
    numbers = per_token / features / (2 if dtype == "bfloat16" else 4)
    assert 0.7 * KEPT[dtype] < numbers < 1.3 * KEPT[dtype]  # type: ignore[index]


def _kept(model: torch.nn.Module, tokens: int, dtype: str) -> int:
    """Bytes that a forward pass keeps for the backward one, weights aside."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"),
    ):
        model.get_base_model().model(input_ids=torch.ones(1, tokens, dtype=torch.long), use_cache=False)  # type: ignore[operator]
    return sum(tensor.untyped_storage().nbytes() for at, tensor in kept.items() if at not in weights)


def test_a_base_is_planned_for_without_being_loaded(llama: Path) -> None:
    told = SftTrainer(SftSettings(lora_r=4)).check(llama, 64, 8)
    assert told.startswith("rank 4 on all-linear; 21,") and "in fp32, QLoRA: no" in told
    with pytest.raises(TrainingError, match="max_length 999 is above the base's 128 positions"):
        SftTrainer(SftSettings()).check(llama, 999, 8)
    with pytest.raises(TrainingError, match="qlora = true needs a CUDA device"):
        memory_plan(SftSettings(qlora=True), llama, 64, 8)
