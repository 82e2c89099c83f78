"""What an engine checks in an adapter's files before it trusts them. Reads safetensors and JSON only, never a
pickle."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open

from serving.engine import EngineError

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

_LORA_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<matrix>[AB])\.weight")


def adapter_digest(adapter_dir: Path) -> str:
    """The identity of an adapter's two files. Raises `EngineError` when one is missing."""
    digest = hashlib.sha256()
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        path = adapter_dir / name
        if not path.is_file():
            raise EngineError(
                f"{adapter_dir} has no {name}; an adapter directory holds {CONFIG_FILE} and {WEIGHTS_FILE}"
            )
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def tensor_shapes(adapter_dir: Path) -> dict[str, tuple[int, ...]]:
    """Shape by tensor name, from the header. Raises `EngineError` for files that are truncated or not what
    they should be."""
    path = adapter_dir / WEIGHTS_FILE
    try:
        config = json.loads((adapter_dir / CONFIG_FILE).read_text(encoding="utf-8"))
        with safe_open(path, framework="np") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    except (OSError, ValueError, SafetensorError) as exc:
        raise EngineError(f"the adapter in {adapter_dir} is corrupt ({exc}); download it again") from exc
    unsupported = [key for key in ("use_dora", "modules_to_save", "auto_map") if config.get(key)]
    if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none" or unsupported:
        raise EngineError(
            f"the adapter in {adapter_dir} is not plain LoRA {unsupported}; "
            "engines serve LoRA without bias, DoRA, modules_to_save"
        )
    if not shapes:
        raise EngineError(f"the adapter in {adapter_dir} holds no tensors")
    return shapes


def check_fits(adapter_dir: Path, linears: Mapping[str, tuple[int, int]]) -> None:
    """Refuse an adapter whose tensors do not all belong to the base.

    `linears` maps the base's linear modules to (in_features, out_features). Libraries load foreign names
    silently and then serve the base (vllm-project/vllm#34186, #48019).
    """
    matrices: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in tensor_shapes(adapter_dir).items():
        match = _LORA_KEY.fullmatch(name)
        module = match["module"] if match else None
        if match is None or module not in linears:
            raise EngineError(
                f"the adapter in {adapter_dir} has {name!r}, "
                "which matches no linear module of the base; it is another model's"
            )
        matrices.setdefault(match["module"], {})[match["matrix"]] = shape
    for module, pair in matrices.items():
        inputs, outputs = linears[module]
        a, b = pair.get("A", (0, 0)), pair.get("B", (0, 0))
        if a[1:] != (inputs,) or b[:1] != (outputs,) or b[1:] != a[:1]:
            raise EngineError(
                f"the adapter in {adapter_dir} has shapes A {a} and B {b} for {module}, "
                f"the base needs ({inputs} -> {outputs})"
            )
