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
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.utils import logging as transformers_logging
from trl import SFTConfig, SFTTrainer

from serving.adapter_files import adapter_sha256
from streams.files import read_json, write_json
from training.adapters import base_name, base_sha256, canonicalise, load_check
from training.checkpoints import (
    CHECKPOINTS,
    PREFIX,
    RESULT,
    Marker,
    claim,
    last_complete,
    mark_complete,
    read_marker,
)
from training.encode import batch_plan, encode
from training.errors import AdapterError, NothingLearned, TrainingDiverged, TrainingError
from training.settings import SftSettings
from training.trainer import CurvePoint, Progress, StopTraining, TrainedAdapter, TrainingJob, unwatched

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SftTrainer:
    """The `training.trainer.Trainer` of this recipe."""

    settings: SftSettings

    def check(self, base_dir: Path, max_length: int) -> str:
        """What can be said of these settings without training: the base's layers have the adapter's targets,
        and its positions an example's length. Raises `TrainingError`."""
        try:
            config = AutoConfig.from_pretrained(base_dir, local_files_only=True)
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config)
        except (OSError, ValueError, KeyError) as exc:
            raise TrainingError(f"the base student in {base_dir} cannot be loaded ({exc})") from exc
        positions = getattr(config, "max_position_embeddings", None) or max_length
        if max_length > positions:
            raise TrainingError(f"max_length {max_length} is above the base's {positions} positions")
        layers = [name for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)]
        targets = self.settings.target_modules
        named = () if isinstance(targets, str) else targets
        unknown = [t for t in named if not any(f".{name}".endswith(f".{t}") for name in layers)]
        if unknown:
            known = ", ".join(sorted({name.rpartition(".")[2] for name in layers}))
            raise TrainingError(f"target_modules {', '.join(unknown)}: the base has {known}")
        return f"rank {self.settings.lora_r} on {targets}, {max_length} of {positions} positions"

    def train(self, job: TrainingJob, on_progress: Progress = unwatched) -> TrainedAdapter:
        """See `training.trainer.Trainer.train`."""
        done = begin(self.settings, job)
        if done is None:
            train_begun(self.settings, job, on_progress)
            done = finished_result(job.out_dir)
            assert done is not None
        return done


def begin(settings: SftSettings, job: TrainingJob) -> TrainedAdapter | None:
    """Claim the job's directory; the result of a finished round, or None. Raises `TrainingError` when the
    directory belongs to another job."""
    claim(job.out_dir, _fingerprint(settings, job))
    return finished_result(job.out_dir)


def train_begun(settings: SftSettings, job: TrainingJob, on_progress: Progress = unwatched) -> None:
    """Train a round that has begun, up to its result. In a launched round each process calls this, and the
    first one writes what is written."""
    tokenizer, model = _load(settings, job)
    rows = encode(job.examples, tokenizer, job.max_length)
    plan = batch_plan([len(row.input_ids) for row in rows], job.steps, job.batch_size, job.seed)
    data = Dataset.from_dict(
        {"input_ids": [rows[i].input_ids for i in plan], "labels": [rows[i].labels for i in plan]}
    )
    tokens = _trained_tokens([len(rows[i].input_ids) for i in plan], job.batch_size)
    before = _trainable(model)
    config = _trainer_config(settings, job)
    processes = PartialState()
    with processes.main_process_first():
        checkpoint = last_complete(job.out_dir / CHECKPOINTS)
    watch = _Watch(on_progress, tokens, read_marker(checkpoint))
    trainer = SFTTrainer(
        model=model, args=config, train_dataset=data, processing_class=tokenizer, callbacks=[watch]
    )
    _run(trainer, checkpoint)
    if watch.stopped is not None:
        raise watch.stopped
    _check_moved(before, _trainable(model))
    _blend(model, before, settings.blend, fresh=job.champion is None)
    if processes.is_main_process:
        adapter = _save_adapter(model, job)
        figures = (job.steps, watch.seconds(), tokens[-1], watch.loss)
        trained = {row.example_id for row in rows}
        left_out = tuple(e.example_id for e in job.examples if e.example_id not in trained)
        curve = _curve(trainer.state.log_history)
        _finish(TrainedAdapter(adapter, adapter_sha256(adapter), *figures, left_out, curve))
    processes.wait_for_everyone()


def finished_result(out_dir: Path) -> TrainedAdapter | None:
    """The result of a finished round, or None. Raises `AdapterError` when the adapter is no longer the one it
    wrote, `CorruptAdapter` when it is damaged."""
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
    found.pop("too_long", None)  # written by earlier versions
    curve = tuple(CurvePoint(**point) for point in found.pop("curve", ()))
    left_out = tuple(found.pop("left_out", ()))
    return TrainedAdapter(adapter_dir=adapter_dir, **found, left_out=left_out, curve=curve)


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Reports progress, stops at the first loss that is not finite, and marks checkpoints as whole.

    `tokens` are those trained after each step. What it adds to the trainer's own log of a step is kept in
    checkpoints with that log.
    """

    def __init__(self, on_progress: Progress, tokens: Sequence[int], resumed: Marker | None) -> None:
        self.loss = resumed.loss if resumed else math.nan
        self.stopped: StopTraining | None = None
        self._on_progress = on_progress
        self._tokens = tokens
        self._started = time.monotonic() - (resumed.seconds if resumed else 0.0)

    def seconds(self) -> float:
        return time.monotonic() - self._started

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: object,
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
        rate = self._tokens[state.global_step - 1] / self.seconds()
        state.log_history[-1] |= {"tokens_per_s": rate, "at_ms": time.time_ns() // 1_000_000}
        try:
            self._on_progress(state.global_step, state.max_steps, self.loss)
        except StopTraining as stop:
            self.stopped = stop
            control.should_save = control.should_training_stop = True

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        PartialState().wait_for_everyone()  # each process writes its random state
        if state.is_world_process_zero:
            checkpoint = Path(args.output_dir) / f"{PREFIX}{state.global_step}"
            mark_complete(checkpoint, self.seconds(), self.loss)


def _trained_tokens(lengths: Sequence[int], batch_size: int) -> list[int]:
    """Tokens trained after each step, prompts included."""
    batches = range(0, len(lengths), batch_size)
    return list(accumulate(sum(lengths[start : start + batch_size]) for start in batches))


def _curve(history: Sequence[Mapping[str, Any]]) -> tuple[CurvePoint, ...]:
    """The trainer's log as points; a checkpoint of an earlier version has some without all figures."""
    names = [each.name for each in fields(CurvePoint)]
    return tuple(
        CurvePoint(**{name: entry[name] for name in names})
        for entry in history
        if all(name in entry for name in names)
    )


def _fingerprint(settings: SftSettings, job: TrainingJob) -> str:
    digest = hashlib.sha256(settings.model_dump_json().encode())
    digest.update(f"{job.steps} {job.batch_size} {job.max_length} {job.seed}".encode())
    digest.update(base_sha256(job.base_dir).encode())
    digest.update(b"none" if job.champion is None else adapter_sha256(job.champion).encode())
    if job.base_name is not None:
        digest.update(f"{job.base_name}".encode())
    for example in job.examples:
        digest.update(example.model_dump_json().encode())
    return digest.hexdigest()


def _load(settings: SftSettings, job: TrainingJob) -> tuple[PreTrainedTokenizerBase, PeftModel]:
    base_dir, champion = job.base_dir, job.champion
    set_seed(job.seed)
    transformers_logging.disable_progress_bar()
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    try:
        tokenizer = AutoTokenizer.from_pretrained(base_dir, local_files_only=True)
        base = AutoModelForCausalLM.from_pretrained(
            base_dir, dtype=dtype, use_safetensors=True, local_files_only=True
        )
    except (OSError, ValueError, KeyError) as exc:
        raise TrainingError(f"the base student in {base_dir} cannot be loaded ({exc})") from exc
    if champion is None:
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
    _check_lineage(settings, champion)
    try:
        model = PeftModel.from_pretrained(base, str(champion), is_trainable=True)
        # A name that is no local path makes PEFT ask the Hub at every save.
        model.peft_config["default"].base_model_name_or_path = str(base_dir)
        return tokenizer, model
    except (RuntimeError, ValueError) as exc:
        raise AdapterError(f"{champion} does not fit the base student in {base_dir} ({exc})") from exc


def _check_lineage(settings: SftSettings, champion: Path) -> None:
    config = load_check(champion)
    found = (config["r"], config["lora_alpha"])
    if found != (settings.lora_r, settings.lora_alpha):
        raise AdapterError(
            f"the champion's adapter has (r, alpha) = {found}, "
            f"the settings say {(settings.lora_r, settings.lora_alpha)}; "
            "a lineage keeps its shape: change the settings, or start a new lineage from the base"
        )


def _trainer_config(settings: SftSettings, job: TrainingJob) -> SFTConfig:
    cuda = torch.cuda.is_available()
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    micro_batches = settings.micro_batches(job.batch_size, processes)
    config = SFTConfig(
        output_dir=str(job.out_dir / CHECKPOINTS),
        max_steps=job.steps,
        per_device_train_batch_size=job.batch_size // micro_batches // processes,
        gradient_accumulation_steps=micro_batches,
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
        seed=job.seed,
        logging_steps=settings.report_every,
        logging_nan_inf_filter=False,
        save_strategy="steps" if settings.save_every else "no",
        save_steps=settings.save_every or 1,
        save_total_limit=2,
        report_to="none",
        disable_tqdm=True,
        ddp_find_unused_parameters=False,
    )
    # On a host with several devices DataParallel would multiply the batch; `launch` is the way to use them.
    config._n_gpu = min(config.n_gpu, 1)  # noqa: SLF001
    return config


def _run(trainer: SFTTrainer, checkpoint: Path | None) -> None:
    for callback in list(trainer.callback_handler.callbacks):
        if type(callback).__name__ in {"PrinterCallback", "ProgressCallback"}:
            trainer.remove_callback(callback)
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except torch.OutOfMemoryError as exc:
        raise TrainingError(
            f"the device ran out of memory; set a smaller micro_batch_size or gradient_checkpointing ({exc})"
        ) from exc


def _trainable(model: PeftModel) -> dict[str, torch.Tensor]:
    return {
        name: weight.detach().cpu().clone()
        for name, weight in model.named_parameters()
        if weight.requires_grad
    }


def _check_moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> None:
    if not all(bool(torch.isfinite(weight).all()) for weight in after.values()):
        raise TrainingDiverged("the trained adapter holds NaN or infinite weights; lower the learning rate")
    if before.keys() != after.keys() or all(torch.equal(before[name], after[name]) for name in before):
        raise NothingLearned(
            f"none of {len(before)} trainable tensors moved; "
            "check the learning rate and the adapter's target modules"
        )


def _blend(model: PeftModel, before: Mapping[str, torch.Tensor], share: float, fresh: bool) -> None:
    """Keep `share` of the way from the weights before. In a fresh adapter, which changes nothing before, that
    is `share` of B alone: exactly so much of the change."""
    if share == 1:
        return
    for name, weight in model.named_parameters():
        if weight.requires_grad and not (fresh and "lora_A" in name):
            weight.data = torch.lerp(before[name].to(weight.device), weight.data, share)


def _save_adapter(model: PeftModel, job: TrainingJob) -> Path:
    temporary, final = job.out_dir / "adapter.tmp", job.out_dir / "adapter"
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(final, ignore_errors=True)
    model.save_pretrained(temporary, save_embedding_layers=False)
    canonicalise(temporary, job.base_name or base_name(job.base_dir))
    load_check(temporary)
    return temporary.rename(final)


def _finish(result: TrainedAdapter) -> None:
    out_dir = result.adapter_dir.parent
    values = {key: value for key, value in asdict(result).items() if key != "adapter_dir"}
    write_json(out_dir / RESULT, values)
    shutil.rmtree(out_dir / CHECKPOINTS, ignore_errors=True)
    logger.info(
        "round trained: %d steps, loss %.4f, %.1f s, adapter %s",
        result.steps,
        result.final_loss,
        result.seconds,
        result.sha256[:12],
    )
