"""The optimizer step of a round: TRL's `SFTTrainer`, whose step goes through micro-batches of any number of
examples, as `training.micro` divides them.

The trainer's data set has one row for each step and process: the numbers of the examples in each micro-batch,
and how many tokens the whole step teaches. So every process knows its part beforehand, a step's loss is the
mean over its tokens whoever computes them, and resuming means skipping rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from datasets import Dataset
from trl import SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
from trl.trainer.utils import add_fused_lm_head

from training.encode import Encoded
from training.memory import MemoryPlan
from training.micro import divide

MICRO_BATCHES, TAUGHT = "micro_batches", "taught"


def step_rows(
    rows: Sequence[Encoded], order: Sequence[int], batch_size: int, tokens: int, processes: int, packed: bool
) -> Dataset:
    """The trainer's data set for rows in this training order (`training.encode.batch_plan`)."""
    data: dict[str, list[Any]] = {MICRO_BATCHES: [], TAUGHT: []}
    for start in range(0, len(order), batch_size):
        step = order[start : start + batch_size]
        shares = divide([len(rows[row].input_ids) for row in step], tokens, processes, packed=packed)
        taught = sum(rows[row].taught for row in step)
        for share in shares:
            data[MICRO_BATCHES].append([[step[place] for place in batch] for batch in share])
            data[TAUGHT].append(taught)
    return Dataset.from_dict(data)


class StepTrainer(SFTTrainer):  # type: ignore[misc]
    """`rows` are what the numbers in `train_dataset` (`step_rows`) mean."""

    def __init__(
        self, *, rows: Sequence[Encoded], memory: MemoryPlan, packed: bool, **arguments: Any
    ) -> None:
        self._rows, self._memory = rows, memory
        pad = arguments["processing_class"].pad_token_id or 0
        self._collate = DataCollatorForLanguageModeling(pad_token_id=pad, padding_free=packed)
        super().__init__(data_collator=self._step, **arguments)
        base = self.model.get_base_model()
        add_fused_lm_head(base)  # again, since SFTTrainer's also computes figures that nobody reads here
        if memory.kept_tokens < max(len(row.input_ids) for row in rows):
            base.gradient_checkpointing_enable({"use_reentrant": False})
        self._layers = [part for part in base.modules() if getattr(part, "gradient_checkpointing", False)]

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """The mean loss a taught token of one step (over all processes, each has its part), with its
        gradients."""
        model.train()
        batches = inputs[MICRO_BATCHES]
        scale = self.accelerator.num_processes / inputs[TAUGHT]  # processes' gradients are averaged
        total = torch.zeros((), device=self.args.device)
        for number, batch in enumerate(batches, start=1):
            batch = self._prepare_inputs(batch)
            recompute = batch["input_ids"].numel() > self._memory.kept_tokens
            for layer in self._layers:
                layer.gradient_checkpointing = recompute
            with nullcontext() if number == len(batches) else self.accelerator.no_sync(model):
                with self.compute_loss_context_manager():
                    found = model(**batch, use_cache=False, fused_lm_head=True)
                    loss = -found.log_probs.sum() * scale
                self.accelerator.backward(loss)
            total += loss.detach()
        return total

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted."""
        return 0

    def _step(self, features: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """One row of the data set as tensors."""
        (feature,) = features
        return {
            MICRO_BATCHES: [self._batch(rows) for rows in feature[MICRO_BATCHES]],
            TAUGHT: feature[TAUGHT],
        }

    def _batch(self, rows: Sequence[int]) -> dict[str, Any]:
        chosen = [self._rows[row] for row in rows]
        batch = self._collate([{"input_ids": row.input_ids, "labels": row.labels} for row in chosen])
        # Padding is on the right, where the causal mask hides it already; without a mask attention is faster.
        batch.pop("attention_mask", None)
        return dict(batch)
