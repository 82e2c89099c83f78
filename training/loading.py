"""The student that a round trains: its base as the memory plan wants it, with the champion's adapter or a
fresh one."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedTokenizerBase,
    set_seed,
)
from transformers.utils import logging as transformers_logging

from agent.items import JsonObject
from training.adapters import load_check
from training.errors import AdapterError, TrainingError
from training.memory import Device, MemoryPlan, ModelShape, plan
from training.settings import SftSettings
from training.trainer import TrainingJob

CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def device_memory() -> tuple[Device, float]:
    """The device that trains, and its memory in bytes; a CPU's is the host's or this container's."""
    if torch.cuda.is_available():
        return "cuda", float(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = CGROUP_LIMIT.read_text().strip() if CGROUP_LIMIT.is_file() else "max"
    return "cpu", float(min(host, int(limit))) if limit.isdigit() else float(host)


def memory_plan(
    settings: SftSettings,
    base_dir: Path,
    max_length: int,
    batch_size: int,
    processes: int = 1,
    shards: int = 1,
) -> MemoryPlan:
    """How this device trains the base, without loading it. Raises `TrainingError` when it has no
    configuration, when the targets are not among its layers, or when NF4 is asked for and cannot be had."""
    shape, positions = _shape(settings, base_dir)
    max_length = min(max_length, positions or max_length)
    device, memory = device_memory()
    chosen = plan(shape, settings, max_length, settings.share(batch_size, processes), device, memory, shards)
    if chosen.qlora:
        _require_nf4(device, asked=settings.qlora is True)
    return chosen


def load_student(
    settings: SftSettings, job: TrainingJob, chosen: MemoryPlan
) -> tuple[PreTrainedTokenizerBase, PeftModel]:
    """The tokenizer, and the base with an adapter to train."""
    set_seed(job.seed)
    transformers_logging.disable_progress_bar()
    dtype = getattr(torch, chosen.dtype)
    extra: JsonObject = {"attn_implementation": settings.attention} if settings.attention else {}
    if chosen.qlora:
        extra |= {
            "device_map": {"": torch.cuda.current_device()},
            "quantization_config": BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=dtype,
                bnb_4bit_quant_storage=dtype,  # what FSDP can shard
            ),
        }
    try:
        tokenizer = AutoTokenizer.from_pretrained(job.base_dir, local_files_only=True)
        base = AutoModelForCausalLM.from_pretrained(
            job.base_dir, dtype=dtype, use_safetensors=True, local_files_only=True, **extra
        )
    except (OSError, ValueError, KeyError, ImportError) as exc:
        raise TrainingError(f"the base student in {job.base_dir} cannot be loaded ({exc})") from exc
    if chosen.qlora:
        base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
    return tokenizer, _adapted(settings, job, base)


def _adapted(settings: SftSettings, job: TrainingJob, base: Any) -> PeftModel:
    if job.champion is None:
        return get_peft_model(base, _lora(settings))
    _check_lineage(settings, job.champion)
    try:
        model = PeftModel.from_pretrained(base, str(job.champion), is_trainable=True)
    except (RuntimeError, ValueError) as exc:
        raise AdapterError(f"{job.champion} does not fit the base student in {job.base_dir} ({exc})") from exc
    # A name that is no local path makes PEFT ask the Hub at every save.
    model.peft_config["default"].base_model_name_or_path = str(job.base_dir)
    return model


def _lora(settings: SftSettings) -> LoraConfig:
    lora = LoraConfig(
        r=settings.lora_r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        task_type="CAUSAL_LM",
    )
    targets = settings.target_modules
    lora.target_modules = targets if isinstance(targets, str) else set(targets)
    return lora


def _check_lineage(settings: SftSettings, champion: Path) -> None:
    config = load_check(champion)
    found = (config["r"], config["lora_alpha"])
    if found != (settings.lora_r, settings.lora_alpha):
        raise AdapterError(
            f"the champion's adapter has (r, alpha) = {found}, "
            f"the settings say {(settings.lora_r, settings.lora_alpha)}; "
            "a lineage keeps its shape: change the settings, or start a new lineage from the base"
        )


def require_positions(base_dir: Path, max_length: int) -> None:
    """Raises `TrainingError` when the base has fewer positions than the longest example may have tokens."""
    positions = _positions(_config(base_dir))
    if positions and max_length > positions:
        raise TrainingError(f"max_length {max_length} is above the base's {positions} positions")


def _config(base_dir: Path) -> Any:
    try:
        return AutoConfig.from_pretrained(base_dir, local_files_only=True)
    except (OSError, ValueError, KeyError) as exc:
        raise TrainingError(f"the base student in {base_dir} cannot be loaded ({exc})") from exc


def _positions(config: Any) -> int | None:
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def _shape(settings: SftSettings, base_dir: Path) -> tuple[ModelShape, int | None]:
    """The base's shape, and how many positions it has when it says so."""
    config = _config(base_dir)
    text = config.get_text_config()
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (ValueError, KeyError) as exc:
        raise TrainingError(f"the base student in {base_dir} cannot be loaded ({exc})") from exc
    head = model.get_output_embeddings()
    layers = {
        name: part
        for name, part in model.named_modules()
        if isinstance(part, torch.nn.Linear) and part is not head
    }
    targets = settings.target_modules
    named = () if isinstance(targets, str) else targets
    unknown = [t for t in named if not any(f".{name}".endswith(f".{t}") for name in layers)]
    if unknown:
        known = ", ".join(sorted({name.rpartition(".")[2] for name in layers}))
        raise TrainingError(f"target_modules {', '.join(unknown)}: the base has {known}")
    shape = ModelShape(
        parameters=model.num_parameters(),
        hidden=text.hidden_size,
        layers=text.num_hidden_layers,
        vocabulary=text.vocab_size,
        features=sum(part.in_features + part.out_features for part in layers.values()),
    )
    return shape, _positions(config)


def _require_nf4(device: Device, *, asked: bool) -> None:
    why = "qlora = true" if asked else "the base fits this device's memory in NF4 only, which"
    if device != "cuda":
        raise TrainingError(f"{why} needs a CUDA device, and PyTorch sees none here; set qlora = false")
    if find_spec("bitsandbytes") is None:
        raise TrainingError(f"{why} needs bitsandbytes: `pip install bitsandbytes`, or set qlora = false")
