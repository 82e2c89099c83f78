"""What training adds to adapter files (`serving.adapter_files`): equal bytes for equal adapters, the hash of
a base, and the check that every value is finite."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open

from agent.items import JsonObject
from serving.adapter_files import (
    ADAPTER_FILES,
    CONFIG_FILE,
    WEIGHTS_FILE,
    CorruptAdapter,
    read_config,
    refuse_pickles,
    tensor_shapes,
)
from streams.files import files_sha256, write_json
from training.errors import TrainingError


def base_sha256(base_dir: Path) -> str:
    """The hash of a base student: every safetensors, JSON and text file at the top of its directory.

    Raises `TrainingError` when the directory holds no safetensors weights.
    """
    names = [
        path.name for path in base_dir.glob("*") if path.suffix in {".safetensors", ".json", ".txt", ".model"}
    ]
    if not any(name.endswith(".safetensors") for name in names):
        raise TrainingError(
            f"{base_dir} holds no .safetensors weights; a base student must be saved as safetensors"
        )
    return files_sha256(base_dir, names)


def canonicalise(adapter_dir: Path, base_name: str) -> None:
    """Make equal adapters equal bytes: sorted configuration without machine paths, and no other files."""
    path = adapter_dir / CONFIG_FILE
    config = json.loads(path.read_text(encoding="utf-8"))
    config["target_modules"] = sorted(config["target_modules"])
    config["base_model_name_or_path"] = base_name
    config["inference_mode"] = True
    write_json(path, config)
    for other in adapter_dir.iterdir():
        if other.name not in ADAPTER_FILES:
            other.unlink()


def load_check(adapter_dir: Path) -> JsonObject:
    """Read every tensor once and return the configuration.

    Raises `CorruptAdapter` for missing or truncated files, pickles, values that are not finite, and for what
    vLLM cannot serve.
    """
    refuse_pickles(adapter_dir)
    config = read_config(adapter_dir)
    names = tensor_shapes(adapter_dir)
    path = adapter_dir / WEIGHTS_FILE
    with safe_open(path, framework="pt") as file:
        broken = [name for name in names if not bool(torch.isfinite(file.get_tensor(name)).all())]
    if broken:
        raise CorruptAdapter(
            f"{path} holds NaN or infinite values in {broken[:3]} ({len(broken)} tensors); do not serve it"
        )
    return config
