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
    tensor_shapes,
)
from streams.files import files_sha256, write_json
from training.errors import TrainingError
from training.trainer import BaseName

PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"})
BASE_SUFFIXES = frozenset({".safetensors", ".json", ".txt", ".model", ".jinja"})


def base_sha256(base_dir: Path) -> str:
    """The hash of a base student: every safetensors, JSON, text and template file at the top of its
    directory. Transformers 5 keeps the chat template, which decides what the student is asked, in
    `chat_template.jinja`.

    Raises `TrainingError` when the directory holds no safetensors weights.
    """
    names = [path.name for path in base_dir.glob("*") if path.suffix in BASE_SUFFIXES]
    if not any(name.endswith(".safetensors") for name in names):
        raise TrainingError(
            f"{base_dir} holds no .safetensors weights; a base student must be saved as safetensors"
        )
    return files_sha256(base_dir, names)


def base_name(base_dir: Path) -> BaseName:
    """What adapters call the base in `base_dir`: its repository and commit when the folder is a snapshot in
    the Hub's cache, else the folder itself and its hash (which PEFT and transformers ignore for folders).

    >>> base_name(Path("/cache/models--org--student/snapshots/0a1b2c"))
    BaseName(name='org/student', revision='0a1b2c')
    """
    repository = base_dir.parent.parent.name
    if base_dir.parent.name == "snapshots" and repository.startswith("models--"):
        return BaseName(repository.removeprefix("models--").replace("--", "/"), base_dir.name)
    return BaseName(str(base_dir.resolve()), base_sha256(base_dir))


def canonicalise(adapter_dir: Path, base: BaseName) -> None:
    """Make equal adapters of one base equal bytes: a sorted configuration, and no other files."""
    path = adapter_dir / CONFIG_FILE
    config = json.loads(path.read_text(encoding="utf-8"))
    config["target_modules"] = sorted(config["target_modules"])
    config["base_model_name_or_path"], config["revision"] = base.name, base.revision
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
    pickles = sorted(path.name for path in adapter_dir.glob("*") if path.suffix in PICKLE_SUFFIXES)
    if pickles:
        raise CorruptAdapter(
            f"{adapter_dir} holds pickle files {pickles}; only safetensors and JSON are accepted, remove them"
        )
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
