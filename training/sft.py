"""One training round: LoRA supervised fine-tuning that continues the champion's adapter (paper section 4,
QLoRA recipe without NF4).

What survives a kill, in order of writing:
1. `inputs.json` ties the directory to the exact settings, data, base and champion;
2. `checkpoints/checkpoint-N` every `save_every` steps, each with its marker last;
3. `adapter/`, written as `adapter.tmp` and renamed;
4. `result.json`, last: a round that has it is finished and is returned without training.

A resumed run gives the same adapter bytes as an undisturbed one: the data order is computed beforehand
(`training.encode`), weights, optimizer, schedule and random states come from the checkpoint. Equal bytes need
the same machine type and thread count.
"""

from __future__ import annotations

import hashlib
import logging
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, set_seed
from transformers.utils import logging as transformers_logging
from trl import SFTConfig, SFTTrainer

from agent.items import Example
from serving.adapter_files import adapter_sha256
from streams.files import read_json, write_json
from training.adapters import base_sha256, canonicalise, load_check
from training.checkpoints import RESULT, Marker, claim, last_complete, mark_complete, read_marker
from training.encode import batch_plan, encode
from training.errors import AdapterError, NothingLearned, TrainingDiverged, TrainingError
from training.settings import SftSettings

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, float], None]


@dataclass(frozen=True)
class SftResult:
    """A finished round. `tokens` counts every trained row with its prompt, `seconds` all attempts up to their
    last checkpoint, `too_long` examples that exceeded `max_length` and were left out."""

    adapter_dir: Path
    sha256: str
    steps: int
    seconds: float
    tokens: int
    final_loss: float
    too_long: int = 0


def train_round(
    settings: SftSettings,
    base_dir: Path,
    champion_adapter: Path | None,
    examples: Sequence[Example],
    out_dir: Path,
    on_progress: Progress = lambda step, total, loss: None,
) -> SftResult:
    """Train on `examples`, starting from the champion's adapter (None: a fresh one), and write the adapter
    into `out_dir`.

    Call it again with the same arguments after a crash: it continues, or returns the finished result.
    `on_progress` is called with (step, total steps, mean loss since the last call); what it raises stops the
    round and is not caught. Raises `TrainingError` and its children.
    """
    claim(out_dir, _fingerprint(settings, base_dir, champion_adapter, examples))
    done = finished_result(out_dir)
    if done is not None:
        return done
    tokenizer, model = _load(settings, base_dir, champion_adapter)
    rows = encode(examples, tokenizer, settings.max_length)
    plan = batch_plan(
        [len(row.input_ids) for row in rows], settings.steps, settings.batch_size, settings.seed
    )
    data = Dataset.from_dict(
        {"input_ids": [rows[i].input_ids for i in plan], "labels": [rows[i].labels for i in plan]}
    )
    before = _trainable(model)
    checkpoint = last_complete(out_dir / "checkpoints")
    watch = _Watch(on_progress, read_marker(checkpoint))
    trainer = SFTTrainer(
        model=model,
        args=_trainer_config(settings, out_dir),
        train_dataset=data,
        processing_class=tokenizer,
        callbacks=[watch],
    )
    _run(trainer, checkpoint)
    _check_moved(before, _trainable(model))
    _save_adapter(model, out_dir, base_dir.name)
    result = SftResult(
        out_dir / "adapter",
        adapter_sha256(out_dir / "adapter"),
        settings.steps,
        watch.seconds(),
        sum(len(rows[i].input_ids) for i in plan),
        watch.loss,
        too_long=len(examples) - len(rows),
    )
    return _finish(out_dir, result)


def finished_result(out_dir: Path) -> SftResult | None:
    """The result of a finished round, or None. Raises `CorruptAdapter` when the adapter is no longer the one
    it wrote."""
    found = read_json(out_dir / RESULT)
    if found is None:
        return None
    adapter_dir = out_dir / "adapter"
    load_check(adapter_dir)
    if adapter_sha256(adapter_dir) != found["sha256"]:
        raise AdapterError(
            f"{adapter_dir} is not the adapter that {out_dir / RESULT} describes; train the round in a"
            " new directory"
        )
    return SftResult(adapter_dir=adapter_dir, **found)


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Reports progress, stops at the first loss that is not finite, and marks checkpoints as whole."""

    def __init__(self, on_progress: Progress, resumed: Marker | None) -> None:
        self.loss = resumed.loss if resumed else math.nan
        self._on_progress = on_progress
        self._started = time.monotonic() - (resumed.seconds if resumed else 0.0)

    def seconds(self) -> float:
        return time.monotonic() - self._started

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        if not logs or "loss" not in logs:
            return
        self.loss = logs["loss"]
        if not math.isfinite(self.loss) or not math.isfinite(logs.get("grad_norm", 0.0)):
            raise TrainingDiverged(
                f"loss {self.loss} and gradient norm {logs.get('grad_norm')} "
                f"at step {state.global_step} of {state.max_steps}; "
                "lower the learning rate and check the champion's adapter"
            )
        self._on_progress(state.global_step, state.max_steps, self.loss)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            mark_complete(checkpoint, self.seconds(), self.loss)


def _fingerprint(
    settings: SftSettings, base_dir: Path, champion_adapter: Path | None, examples: Sequence[Example]
) -> str:
    digest = hashlib.sha256(settings.model_dump_json().encode())
    digest.update(base_sha256(base_dir).encode())
    digest.update(b"none" if champion_adapter is None else adapter_sha256(champion_adapter).encode())
    for example in examples:
        digest.update(example.model_dump_json().encode())
    return digest.hexdigest()


def _load(settings: SftSettings, base_dir: Path, champion_adapter: Path | None) -> tuple[Any, Any]:
    set_seed(settings.seed)
    transformers_logging.disable_progress_bar()
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    try:
        tokenizer = AutoTokenizer.from_pretrained(base_dir, local_files_only=True)
        base = AutoModelForCausalLM.from_pretrained(
            base_dir, dtype=dtype, use_safetensors=True, local_files_only=True
        )
    except (OSError, ValueError, KeyError) as exc:
        raise TrainingError(f"the base student in {base_dir} cannot be loaded ({exc})") from exc
    if champion_adapter is None:
        targets = (
            settings.target_modules
            if isinstance(settings.target_modules, str)
            else set(settings.target_modules)
        )
        lora = LoraConfig(
            r=settings.lora_r,
            lora_alpha=settings.lora_alpha,
            lora_dropout=settings.lora_dropout,
            task_type="CAUSAL_LM",
        )
        lora.target_modules = targets
        return tokenizer, get_peft_model(base, lora)
    _check_lineage(settings, champion_adapter)
    try:
        model = PeftModel.from_pretrained(base, str(champion_adapter), is_trainable=True)
        # A name that is no local path makes PEFT ask the Hub at every save.
        model.peft_config["default"].base_model_name_or_path = str(base_dir)
        return tokenizer, model
    except (RuntimeError, ValueError) as exc:
        raise AdapterError(f"{champion_adapter} does not fit the base student in {base_dir} ({exc})") from exc


def _check_lineage(settings: SftSettings, champion_adapter: Path) -> None:
    config = load_check(champion_adapter)
    found = (config["r"], config["lora_alpha"])
    if found != (settings.lora_r, settings.lora_alpha):
        raise AdapterError(
            f"the champion's adapter has (r, alpha) = {found}, "
            f"the settings say {(settings.lora_r, settings.lora_alpha)}; "
            "a lineage keeps its shape: change the settings, or start a new lineage from the base"
        )


def _trainer_config(settings: SftSettings, out_dir: Path) -> SFTConfig:
    cuda = torch.cuda.is_available()
    micro = settings.micro_batch_size or settings.batch_size
    return SFTConfig(
        output_dir=str(out_dir / "checkpoints"),
        max_steps=settings.steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=settings.batch_size // micro,
        learning_rate=settings.lr,
        lr_scheduler_type="cosine",
        warmup_steps=settings.warmup_ratio,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        train_sampling_strategy="sequential",
        dataloader_num_workers=0,
        dataloader_pin_memory=cuda,
        gradient_checkpointing=settings.gradient_checkpointing,
        bf16=cuda,
        use_cpu=not cuda,
        seed=settings.seed,
        logging_steps=settings.report_every,
        logging_nan_inf_filter=False,
        save_strategy="steps" if settings.save_every else "no",
        save_steps=settings.save_every or 1,
        save_total_limit=2,
        report_to="none",
        disable_tqdm=True,
    )


def _run(trainer: Any, checkpoint: Path | None) -> None:
    for callback in list(trainer.callback_handler.callbacks):
        if type(callback).__name__ in {"PrinterCallback", "ProgressCallback"}:
            trainer.remove_callback(callback)
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except torch.OutOfMemoryError as exc:
        raise TrainingError(
            f"the device ran out of memory; set a smaller micro_batch_size or gradient_checkpointing ({exc})"
        ) from exc


def _trainable(model: Any) -> dict[str, Any]:
    return {
        name: weight.detach().cpu().clone()
        for name, weight in model.named_parameters()
        if weight.requires_grad
    }


def _check_moved(before: dict[str, Any], after: dict[str, Any]) -> None:
    if not all(bool(torch.isfinite(weight).all()) for weight in after.values()):
        raise TrainingDiverged("the trained adapter holds NaN or infinite weights; lower the learning rate")
    if before.keys() != after.keys() or all(torch.equal(before[name], after[name]) for name in before):
        raise NothingLearned(
            f"none of {len(before)} trainable tensors moved; "
            "check the learning rate and the adapter's target modules"
        )


def _save_adapter(model: Any, out_dir: Path, base_name: str) -> None:
    temporary, final = out_dir / "adapter.tmp", out_dir / "adapter"
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(final, ignore_errors=True)
    model.save_pretrained(temporary, save_embedding_layers=False)
    canonicalise(temporary, base_name)
    load_check(temporary)
    temporary.rename(final)


def _finish(out_dir: Path, result: SftResult) -> SftResult:
    values = {key: value for key, value in asdict(result).items() if key != "adapter_dir"}
    write_json(out_dir / RESULT, values)
    shutil.rmtree(out_dir / "checkpoints", ignore_errors=True)
    logger.info(
        "round trained: %d steps, loss %.4f, %.1f s, adapter %s",
        result.steps,
        result.final_loss,
        result.seconds,
        result.sha256[:12],
    )
    return result
