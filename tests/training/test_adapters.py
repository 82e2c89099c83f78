"""Values that are not finite are found in every type of number that an adapter may hold."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from serving.adapter_files import CorruptAdapter
from training.adapters import load_check


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "finite"])
def test_what_is_not_finite_is_refused(dtype: torch.dtype, value: str, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    numbers = torch.tensor([0.0, -0.0, 1.5, torch.finfo(dtype).max, torch.finfo(dtype).tiny], dtype=dtype)
    if value != "finite":
        numbers[2] = float(value)
    whole = {"lora_A": torch.ones(2, dtype=dtype), "steps": torch.tensor([7])}
    save_file(whole | {"lora_B": numbers}, tmp_path / "adapter_model.safetensors")
    if value == "finite":
        assert load_check(tmp_path)["peft_type"] == "LORA"
    else:
        with pytest.raises(CorruptAdapter, match=r"\['lora_B'\]"):
            load_check(tmp_path)


def test_a_type_of_number_that_is_unknown_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    odd = torch.ones(2).to(torch.float8_e5m2)
    save_file({"lora_A": odd}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(CorruptAdapter, match="none that can be read"):
        load_check(tmp_path)
