"""An adapter as files: its canonical bytes, its hash, and the check that it is whole, finite and safe to
load.

An adapter directory holds exactly `adapter_config.json` and `adapter_model.safetensors`, so that vLLM, PEFT
and the registry read the same thing. No pickle is ever opened.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from training.errors import CorruptAdapter

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
ADAPTER_FILES = (CONFIG_FILE, WEIGHTS_FILE)
PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"})


def files_sha256(root: Path, names: Iterable[str]) -> str:
    """One hash over several files of a directory: their names, sizes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(names):
        path = root / name
        digest.update(f"{name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def adapter_sha256(adapter_dir: Path) -> str:
    """The canonical hash of an adapter: its two files and nothing else that may lie beside them.

    Raises `CorruptAdapter` when one is missing.
    """
    _require_files(adapter_dir)
    return files_sha256(adapter_dir, ADAPTER_FILES)


def base_sha256(base_dir: Path) -> str:
    """The hash of a base student: every safetensors, JSON and text file at the top of its directory.

    Raises `CorruptAdapter` when the directory holds no safetensors weights.
    """
    names = [
        path.name for path in base_dir.glob("*") if path.suffix in {".safetensors", ".json", ".txt", ".model"}
    ]
    if not any(name.endswith(".safetensors") for name in names):
        raise CorruptAdapter(
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
    path.write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    for other in adapter_dir.iterdir():
        if other.name not in ADAPTER_FILES:
            other.unlink()


def load_check(adapter_dir: Path) -> dict[str, Any]:
    """Read every tensor once and return the configuration.

    Raises `CorruptAdapter` for missing or truncated files, pickles, values that are not finite, and for what
    vLLM cannot serve (bias, DoRA, modules_to_save).
    """
    _require_files(adapter_dir)
    pickles = sorted(path.name for path in adapter_dir.iterdir() if path.suffix in PICKLE_SUFFIXES)
    if pickles:
        raise CorruptAdapter(
            f"{adapter_dir} holds pickle files {pickles}; only safetensors and JSON are accepted, remove them"
        )
    config = read_config(adapter_dir)
    _check_tensors(adapter_dir / WEIGHTS_FILE)
    return config


def read_config(adapter_dir: Path) -> dict[str, Any]:
    """The LoRA configuration. Raises `CorruptAdapter` when it is not one that vLLM can serve."""
    path = adapter_dir / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise CorruptAdapter(
            f"{path} is not readable JSON ({exc}); download or train the adapter again"
        ) from exc
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise CorruptAdapter(f"{path} does not describe a LoRA adapter")
    forbidden = {
        "bias": config.get("bias", "none") != "none",
        "use_dora": config.get("use_dora"),
        "auto_map": config.get("auto_map"),
    }
    forbidden["modules_to_save"] = config.get("modules_to_save")
    bad = sorted(name for name, value in forbidden.items() if value)
    if bad:
        raise CorruptAdapter(f"{path} uses {bad}, which cannot be served by vLLM; train without")
    return config


def _require_files(adapter_dir: Path) -> None:
    missing = [name for name in ADAPTER_FILES if not (adapter_dir / name).is_file()]
    if missing:
        raise CorruptAdapter(f"{adapter_dir} lacks {missing}; an adapter is {list(ADAPTER_FILES)}")


def _check_tensors(path: Path) -> None:
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            broken = [name for name in names if not bool(torch.isfinite(file.get_tensor(name)).all())]
    except (OSError, SafetensorError) as exc:
        raise CorruptAdapter(
            f"{path} is truncated or not safetensors ({exc}); download or train the adapter again"
        ) from exc
    if not names:
        raise CorruptAdapter(f"{path} holds no tensors")
    if broken:
        raise CorruptAdapter(
            f"{path} holds NaN or infinite values in {broken[:3]} ({len(broken)} tensors); do not serve it"
        )
