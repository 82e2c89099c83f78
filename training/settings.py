"""How rounds of supervised fine-tuning train: settings alone, so that reading a configuration loads no model
library."""

from __future__ import annotations

from pydantic import Field

from agent.settings import Settings


class SftSettings(Settings):
    """The recipe of a LoRA round; its size (steps, batch, length) is the job's (`training.trainer`).

    `blend` is the part of the round's change that the adapter keeps; the rest stays the champion's (weights
    interpolated after training, as in WiSE-FT, arXiv 2109.01903). Below 1 less is forgotten, and a little
    less learned (docs/learning.md).

    `micro_batch_size` (None: the whole batch) is what one device holds at a time. `save_every` 0 writes no
    checkpoints.
    """

    lora_r: int = Field(default=16, gt=0)
    lora_alpha: int = Field(default=32, gt=0)
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: str | tuple[str, ...] = "all-linear"
    lr: float = Field(default=2e-4, gt=0)
    micro_batch_size: int | None = Field(default=None, gt=0)
    warmup_ratio: float = Field(default=0.03, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    gradient_checkpointing: bool = False
    blend: float = Field(default=1.0, gt=0, le=1, exclude_if=lambda share: share == 1)
    save_every: int = Field(default=50, ge=0)
    report_every: int = Field(default=10, gt=0)

    def micro_batches(self, batch_size: int, processes: int = 1) -> int:
        """How many micro-batches each of `processes` goes through for one batch over all of them. Raises
        `ValueError` when they do not divide it."""
        share, rest = divmod(batch_size, processes)
        micro = self.micro_batch_size or share
        if rest or share % micro:
            raise ValueError(
                f"batch_size {batch_size} is not a multiple of micro_batch_size {micro} x {processes} "
                "processes"
            )
        return share // micro


class LaunchSettings(Settings):
    """How the processes of a round start. `processes`: how many on this host, one for each device.

    `command` replaces `torchrun --standalone --nproc-per-node=<processes>`, for instance by `["accelerate",
    "launch", "--num_processes=8"]`, or by what starts them on several hosts that share the run's directory;
    `processes` must then say how many there are. `-m training.launched JOB` is appended. The processes hold
    whole copies of the student (DDP); sharded ones (FSDP) are not supported yet.
    """

    processes: int = Field(default=1, gt=0)
    command: tuple[str, ...] = ()
