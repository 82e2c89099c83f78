"""Tiny random students and adapters to serve: a Llama and a Qwen3 with a 40-word vocabulary, built once per
session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from tests.students import build_student


@pytest.fixture(scope="session", params=["llama", "qwen"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_student(tmp_path_factory.mktemp(request.param), request.param)


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
