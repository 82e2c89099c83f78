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
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import accumulate
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import PartialState
from peft import PeftModel
from torch.distributed.tensor import DTensor
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import SFTConfig

from agent.items import JsonObject
from agent.settings import Settings
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
from training.loading import load_student, memory_plan, require_positions
from training.memory import MemoryPlan
from training.settings import GrpoSettings, SftSettings
from training.steps import StepTrainer, step_rows
from training.trainer import CurvePoint, Progress, StopTraining, TrainedAdapter, TrainingJob, unwatched

logger = logging.getLogger(__name__)
Arguments = TypeVar("Arguments", bound=TrainingArguments)


@dataclass(frozen=True)
class SftTrainer:
    """The `training.trainer.Trainer` of this recipe."""

    settings: SftSettings

    def check(self, base_dir: Path, max_length: int, batch_size: int) -> str:
        """What can be said of these settings without training: the base's layers have the adapter's targets,
        its positions an example's length, and the device's memory the round. Raises `TrainingError`."""
        require_positions(base_dir, max_length)
        return checked(self.settings, memory_plan(self.settings, base_dir, max_length, batch_size))

    def train(self, job: TrainingJob, on_progress: Progress = unwatched) -> TrainedAdapter:
        """See `training.trainer.Trainer.train`."""
        done = begin(job, self.settings)
        if done is None:
            train_begun(self.settings, job, on_progress)
            done = finished_result(job.out_dir)
            assert done is not None
        return done


def begin(job: TrainingJob, *recipe: Settings) -> TrainedAdapter | None:
    """Claim the job's directory; the result of a finished round, or None. Raises `TrainingError` when the
    directory belongs to another job."""
    claim(job.out_dir, fingerprint(job, *recipe))
    return finished_result(job.out_dir)


def checked(settings: SftSettings, memory: MemoryPlan) -> str:
    """One line about a plan. Raises `TrainingError` when the round is too large for the device."""
    if not memory.fits:
        raise TrainingError(
            f"the round does not fit this device: {memory.told()}; take a smaller base or max_length, another"
            " device, qlora = true, or [train] kind = 'launch' with fsdp over several"
        )
    return f"rank {settings.lora_r} on {settings.target_modules}; {memory.told()}"


def train_begun(
    settings: SftSettings, job: TrainingJob, on_progress: Progress = unwatched, *, fsdp: bool = False
) -> None:
    """Train a round that has begun, up to its result. In a launched round each process calls this, and the
    first one writes what is written; with `fsdp` each holds a part of the student."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    shards = count if fsdp else 1
    memory = memory_plan(settings, job.base_dir, job.max_length, job.batch_size, count, shards)
    logger.info("round in %s: %s", job.out_dir, checked(settings, memory))
    tokenizer, model = load_student(settings, job, memory)
    rows = encode(job.examples, tokenizer, job.max_length)
    order = batch_plan([len(row.input_ids) for row in rows], job.steps, job.batch_size, job.seed)
    tokens = _trained_tokens([len(rows[i].input_ids) for i in order], job.batch_size)
    before = trainable(model)
    config = _trainer_config(settings, job, memory, fsdp=fsdp)
    with PartialState().main_process_first():
        checkpoint = last_complete(job.out_dir / CHECKPOINTS)
    watch = TrainingWatch(on_progress, read_marker(checkpoint), tokens)
    trainer = StepTrainer(
        rows=rows,
        memory=memory,
        packed=settings.packs,
        model=model,
        args=config,
        train_dataset=step_rows(rows, order, job.batch_size, memory.tokens, count, settings.packs),
        processing_class=tokenizer,
        callbacks=[watch],
    )
    run(trainer, checkpoint, watch)
    finish(job, model, before, watch, {row.example_id for row in rows}, settings.blend)


def finish(
    job: TrainingJob,
    model: PeftModel,
    before: Mapping[str, torch.Tensor],
    watch: TrainingWatch,
    trained: Collection[str],
    blend: float = 1.0,
) -> None:
    """Write adapter, with `blend` of the round's change, and result of a round that has been trained to its
    end on the examples `trained`. Every process calls this, since a sharded student is gathered from all of
    them."""
    after, processes = trainable(model), PartialState()
    _check_moved(before, after)
    if processes.is_main_process:
        adapter = _save_adapter(model, job, blended(before, after, blend, fresh=job.champion is None))
        left_out = tuple(e.example_id for e in job.examples if e.example_id not in trained)
        figures = (job.steps, watch.seconds(), watch.tokens(), watch.loss)
        _finish(TrainedAdapter(adapter, adapter_sha256(adapter), *figures, left_out, watch.curve()))
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


class TrainingWatch(TrainerCallback):  # type: ignore[misc]
    """Reports progress, stops at the first loss that is not finite, and marks checkpoints as whole.

    `planned` are the tokens trained after each step; without them the trainer counts (`num_tokens`). What it
    adds to the trainer's own log of a step is kept in checkpoints with that log.
    """

    def __init__(self, on_progress: Progress, resumed: Marker | None, planned: Sequence[int] = ()) -> None:
        self.loss = resumed.loss if resumed else math.nan
        self.stopped: StopTraining | None = None
        self._on_progress = on_progress
        self._planned = planned
        self._state = TrainerState()
        self._started = time.monotonic() - (resumed.seconds if resumed else 0.0)

    def seconds(self) -> float:
        """Training seconds of all attempts."""
        return time.monotonic() - self._started

    def tokens(self) -> int:
        """Tokens trained so far."""
        step = self._state.global_step
        return self._planned[step - 1] if self._planned else int(self._state.num_input_tokens_seen)

    def curve(self) -> tuple[CurvePoint, ...]:
        """The trainer's log as points; a checkpoint of an earlier version has some without all figures."""
        names = [each.name for each in fields(CurvePoint)]
        return tuple(
            CurvePoint(**{name: entry[name] for name in names})
            for entry in self._state.log_history
            if all(name in entry for name in names)
        )

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        self._state = state

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
        rate = self.tokens() / self.seconds()
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


def fingerprint(job: TrainingJob, *recipe: Settings) -> str:
    """What a round's directory belongs to: its recipe, size, data, base and champion."""
    digest = hashlib.sha256("".join(settings.model_dump_json() for settings in recipe).encode())
    digest.update(f"{job.steps} {job.batch_size} {job.max_length} {job.seed}".encode())
    digest.update(base_sha256(job.base_dir).encode())
    digest.update(b"none" if job.champion is None else adapter_sha256(job.champion).encode())
    if job.base_name is not None:
        digest.update(f"{job.base_name}".encode())
    for example in job.examples:
        digest.update(example.model_dump_json().encode())
    return digest.hexdigest()


def _trainer_config(settings: SftSettings, job: TrainingJob, memory: MemoryPlan, *, fsdp: bool) -> SFTConfig:
    return one_device(
        SFTConfig(
            **common_arguments(settings, job, memory),
            per_device_train_batch_size=1,  # row of `step_rows`, which is a whole step's share
            lr_scheduler_type="cosine",
            warmup_steps=settings.warmup_ratio,
            weight_decay=settings.weight_decay,
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
            remove_unused_columns=False,
            train_sampling_strategy="sequential",
            gradient_checkpointing=False,  # `StepTrainer` decides it for each micro-batch
            fsdp=fsdp,
        )
    )


def common_arguments(
    settings: SftSettings | GrpoSettings, job: TrainingJob, memory: MemoryPlan
) -> JsonObject:
    """The trainer's arguments that do not depend on the method."""
    cuda = torch.cuda.is_available()
    return {
        "output_dir": str(job.out_dir / CHECKPOINTS),
        "max_steps": job.steps,
        "learning_rate": settings.lr,
        "max_grad_norm": settings.max_grad_norm,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": False,
        "optim": "paged_adamw_8bit" if memory.qlora else "adamw_torch",
        "bf16": memory.dtype == "bfloat16",
        "use_cpu": not cuda,
        "seed": job.seed,
        "logging_steps": settings.report_every,
        "logging_nan_inf_filter": False,
        "save_strategy": "steps" if settings.save_every else "no",
        "save_steps": settings.save_every or 1,
        "save_total_limit": 2,
        "report_to": "none",
        "disable_tqdm": True,
        "ddp_find_unused_parameters": False,
    }


def one_device(arguments: Arguments) -> Arguments:
    """The arguments without DataParallel, which on a host with several devices would multiply the batch;
    `launch` is the way to use them."""
    arguments._n_gpu = min(arguments.n_gpu, 1)  # noqa: SLF001
    return arguments


def run(trainer: Trainer, checkpoint: Path | None, watch: TrainingWatch) -> None:
    """Train from the checkpoint or the beginning. Raises `TrainingError`, and what stopped the round."""
    for callback in list(trainer.callback_handler.callbacks):
        if type(callback).__name__ in {"PrinterCallback", "ProgressCallback"}:
            trainer.remove_callback(callback)
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except torch.OutOfMemoryError as exc:
        raise TrainingError(
            f"the device ran out of memory; set a smaller micro_batch_size or gradient_checkpointing ({exc})"
        ) from exc
    if watch.stopped is not None:
        raise watch.stopped


def trainable(model: PeftModel) -> dict[str, torch.Tensor]:
    """A copy of the weights that are trained; those of a sharded student are gathered on each process."""
    return {
        name: (weight.full_tensor() if isinstance(weight, DTensor) else weight).detach().cpu().clone()
        for name, weight in model.named_parameters()
        if weight.requires_grad
    }


def _check_moved(before: Mapping[str, torch.Tensor], after: dict[str, torch.Tensor]) -> None:
    if not all(bool(torch.isfinite(weight).all()) for weight in after.values()):
        raise TrainingDiverged("the trained adapter holds NaN or infinite weights; lower the learning rate")
    if before.keys() != after.keys() or all(torch.equal(before[name], after[name]) for name in before):
        raise NothingLearned(
            f"none of {len(before)} trainable tensors moved; "
            "check the learning rate and the adapter's target modules"
        )


def blended(
    before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor], share: float, *, fresh: bool
) -> dict[str, torch.Tensor]:
    """The weights at `share` of the way from those before. In a fresh adapter, which changes nothing before,
    that is `share` of B alone: exactly so much of the change."""
    if share == 1:
        return dict(after)
    return {
        name: weight if fresh and "lora_A" in name else torch.lerp(before[name], weight, share)
        for name, weight in after.items()
    }


def _save_adapter(model: PeftModel, job: TrainingJob, weights: dict[str, torch.Tensor]) -> Path:
    temporary, final = job.out_dir / "adapter.tmp", job.out_dir / "adapter"
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(final, ignore_errors=True)
    model.save_pretrained(temporary, state_dict=weights, save_embedding_layers=False)
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
