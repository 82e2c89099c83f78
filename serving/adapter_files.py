"""An adapter as files: their names, their hash, and what is checked before anyone trusts them.

An adapter directory holds exactly `adapter_config.json` and `adapter_model.safetensors`, so that vLLM, PEFT
and the registry read the same. No pickle is ever opened.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from agent.items import JsonObject
from serving.engine import EngineError
from streams.files import files_sha256, write_bytes, write_json

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
ADAPTER_FILES = (CONFIG_FILE, WEIGHTS_FILE)

_LORA_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<matrix>[AB])\.weight")
PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"})
_UNSERVABLE = (
    "alora_invocation_tokens",
    "auto_map",
    "layer_replication",
    "lora_bias",
    "modules_to_save",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
)
_PLAIN_STARTS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
"""Ways to begin training that leave the base as it is; the others (PiSSA, OLoRA, ...) change its weights."""


class CorruptAdapter(EngineError):
    """An adapter's files are incomplete, not finite, unsafe, or not those that were registered."""


def adapter_sha256(adapter_dir: Path) -> str:
    """The identity of an adapter: its two files and nothing else that may lie beside them.

    Raises `CorruptAdapter` when one is missing.
    """
    missing = [name for name in ADAPTER_FILES if not (adapter_dir / name).is_file()]
    if missing:
        raise CorruptAdapter(f"{adapter_dir} lacks {missing}; an adapter is {list(ADAPTER_FILES)}")
    return files_sha256(adapter_dir, ADAPTER_FILES)


def read_config(adapter_dir: Path) -> JsonObject:
    """The LoRA configuration. Raises `CorruptAdapter` when it is not one that vLLM can serve (bias, DoRA,
    modules_to_save, and what else its `PEFTHelper` refuses or ignores)."""
    path = adapter_dir / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise CorruptAdapter(f"{path} is not readable JSON ({exc}); get the adapter again") from exc
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise CorruptAdapter(f"{path} does not describe a LoRA adapter")
    bad = [name for name in _UNSERVABLE if config.get(name)]
    bad += ["bias"] if config.get("bias", "none") != "none" else []
    start = config.get("init_lora_weights", True)
    bad += [f"init_lora_weights {start!r}"] if isinstance(start, str) and start not in _PLAIN_STARTS else []
    if bad:
        raise CorruptAdapter(f"{path} uses {bad}, which engines do not serve; train the adapter without")
    return config


def refuse_pickles(adapter_dir: Path) -> None:
    """Raise `CorruptAdapter` when a pickle lies beside the adapter: somebody may come to load it."""
    pickles = sorted(path.name for path in adapter_dir.glob("*") if path.suffix in PICKLE_SUFFIXES)
    if pickles:
        raise CorruptAdapter(
            f"{adapter_dir} holds pickle files {pickles}; only safetensors and JSON are accepted, remove them"
        )


def rank_of(config: JsonObject) -> int:
    """The highest rank among an adapter's modules. Raises `CorruptAdapter` for one that is not a number."""
    patterns = config.get("rank_pattern") or {}
    ranks = [config.get("r"), *(patterns.values() if isinstance(patterns, dict) else [None])]
    if not all(isinstance(rank, int) and rank > 0 for rank in ranks):
        raise CorruptAdapter(f"the adapter's ranks are {ranks}; they must be whole numbers above 0")
    return max(int(str(rank)) for rank in ranks)


def tensor_shapes(adapter_dir: Path) -> dict[str, tuple[int, ...]]:
    """Shape by tensor name, from the header. Raises `CorruptAdapter` for files that are truncated or not what
    they should be."""
    read_config(adapter_dir)
    path = adapter_dir / WEIGHTS_FILE
    try:
        with safe_open(path, framework="np") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    except (OSError, SafetensorError) as exc:
        raise CorruptAdapter(
            f"{path} is truncated or not safetensors ({exc}); get the adapter again"
        ) from exc
    if not shapes:
        raise CorruptAdapter(f"{path} holds no tensors")
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


def write_neutral(adapter_dir: Path, base_dir: Path) -> Path:
    """Write an adapter that changes nothing: one matrix of rank 1 that is zero, for the first projection of
    the base. Raises `EngineError` when the base has none."""
    for file in sorted(base_dir.glob("*.safetensors")):
        with safe_open(file, framework="np") as weights:
            for name in sorted(weights.keys()):
                if name.endswith("_proj.weight"):
                    outputs, inputs = weights.get_slice(name).get_shape()
                    module = f"base_model.model.{name.removesuffix('.weight')}"
                    zeros = {"A": (1, inputs), "B": (outputs, 1)}
                    tensors = {
                        f"{module}.lora_{matrix}.weight": np.zeros(shape, np.float32)
                        for matrix, shape in zeros.items()
                    }
                    write_bytes(adapter_dir / WEIGHTS_FILE, save(tensors))
                    write_json(adapter_dir / CONFIG_FILE, _neutral_config(name.removesuffix(".weight")))
                    return adapter_dir
    raise EngineError(f"{base_dir} has no safetensors weights called ..._proj; serve it without it")


def _neutral_config(module: str) -> JsonObject:
    return {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 1, "lora_alpha": 1, "lora_dropout": 0.0,
        "bias": "none", "target_modules": module, "layers_to_transform": None, "inference_mode": True,
        "base_model_name_or_path": "base",
    }  # fmt: skip
