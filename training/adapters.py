"""What training adds to adapter files (`serving.adapter_files`): equal bytes for equal adapters, the hash of
a base, and the check that every value is finite."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import deserialize

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
from training.trainer import BaseName

_EXPONENTS: Mapping[str, tuple[str, int]] = {
    "F64": ("<u8", 0x7FF0_0000_0000_0000),
    "F32": ("<u4", 0x7F80_0000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
}
"""How a type of number is read as integers, and the bits of its exponent: all of them set is NaN or infinite
(IEEE 754). numpy knows no bfloat16, and torch takes seconds to import."""
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
    refuse_pickles(adapter_dir)
    config = read_config(adapter_dir)
    tensor_shapes(adapter_dir)
    path = adapter_dir / WEIGHTS_FILE
    broken = [name for name, tensor in deserialize(path.read_bytes()) if not _finite(tensor)]  # type: ignore[no-untyped-call]
    if broken:
        raise CorruptAdapter(
            f"{path} holds NaN or infinite values, or none that can be read, in {broken[:3]}"
            f" ({len(broken)} tensors); do not serve it"
        )
    return config


def _finite(tensor: JsonObject) -> bool:
    """Whether every value of a tensor is a finite number; never for a type of number that is unknown here."""
    kind = str(tensor["dtype"])
    if kind not in _EXPONENTS:
        return kind.startswith(("I", "U", "BOOL"))
    integers, exponent = _EXPONENTS[kind]
    numbers = np.frombuffer(tensor["data"], np.dtype(integers))
    return not bool((numbers & exponent == exponent).any())
