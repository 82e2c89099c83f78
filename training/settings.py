"""How rounds of supervised fine-tuning train: settings alone, so that reading a configuration loads no model
library."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from agent.settings import Settings


class SftSettings(Settings):
    """The recipe of a LoRA round; its size (steps, batch, length) is the job's (`training.trainer`).

    `save_every` 0 writes no checkpoints. What is left open (none) follows from the base's size and the
    device's memory (`training.memory`; `skillloop doctor` tells): `dtype` of the base; `qlora`, the base in
    NF4 with paged 8-bit AdamW, which needs CUDA and bitsandbytes; `micro_batch_size`, how many examples of
    the greatest length a device holds at a time (as many shorter ones as have the same number of tokens);
    `gradient_checkpointing`: true recomputes layers always, false never, none where they would not fit.

    `attention` is transformers' implementation (`sdpa`, `flash_attention_2`, ...; none: its own choice).
    `packing` puts a micro-batch's examples into one row without padding, each attending to itself only;
    none: where the attention is a flash one. With others it costs more than the padding.

    `blend` is the part of the round's change that the adapter keeps; the rest stays the champion's (weights
    interpolated after training, as in WiSE-FT, arXiv 2109.01903). Below 1 less is forgotten, and a little
    less learned (docs/learning.md).
    """

    lora_r: int = Field(default=16, gt=0)
    lora_alpha: int = Field(default=32, gt=0)
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: str | tuple[str, ...] = "all-linear"
    lr: float = Field(default=2e-4, gt=0)
    dtype: Literal["float32", "bfloat16"] | None = None
    qlora: bool | None = None
    micro_batch_size: int | None = Field(default=None, gt=0)
    attention: str | None = None
    packing: bool | None = None
    warmup_ratio: float = Field(default=0.03, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    gradient_checkpointing: bool | None = None
    blend: float = Field(default=1.0, gt=0, le=1, exclude_if=lambda share: share == 1)
    save_every: int = Field(default=50, ge=0)
    report_every: int = Field(default=10, gt=0)

    @property
    def packs(self) -> bool:
        """Whether micro-batches are packed."""
        return "flash" in (self.attention or "") if self.packing is None else self.packing

    def share(self, batch_size: int, processes: int = 1) -> int:
        """How many examples of a step each of `processes` has. Raises `ValueError` when they do not divide
        it."""
        share, rest = divmod(batch_size, processes)
        if rest:
            raise ValueError(f"batch_size {batch_size} is not a multiple of {processes} processes")
        return share


class GrpoSettings(Settings):
    """The recipe of a reinforced round (`training.grpo`): `generations` answers to each question, of at most
    `max_new_tokens`, drawn at `temperature`; `kl` weighs the distance to the champion (0: none, as in the
    paper).

    `micro_batch_size` (None: all of a step) is how many answers one device holds at a time. `save_every` 0
    writes no checkpoints.
    """

    generations: int = Field(default=8, gt=1)
    max_new_tokens: int = Field(default=512, gt=0)
    temperature: float = Field(default=1.0, gt=0)
    lr: float = Field(default=1e-5, gt=0)
    kl: float = Field(default=0.0, ge=0)
    micro_batch_size: int | None = Field(default=None, gt=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    gradient_checkpointing: bool = False
    save_every: int = Field(default=20, ge=0)
    report_every: int = Field(default=5, gt=0)

    def micro_batches(self, batch_size: int) -> int:
        """Into how many parts the answers of a step are divided. Raises `ValueError` when they do not
        divide."""
        answers = batch_size * self.generations
        parts, rest = divmod(answers, self.micro_batch_size or answers)
        if rest:
            raise ValueError(
                f"batch_size {batch_size} x generations {self.generations} is not a multiple of"
                f" micro_batch_size {self.micro_batch_size}"
            )
        return parts


class LaunchSettings(Settings):
    """How the processes of a round start. `processes`: how many on this host, one for each device.

    `command` replaces `torchrun --standalone --nproc-per-node=<processes>`, for instance by `["accelerate",
    "launch", "--num_processes=8"]`, or by what starts them on several hosts that share the run's directory;
    `processes` must then say how many there are. `-m training.launched JOB` is appended. The processes hold
    whole copies of the student (DDP), or with `fsdp` each a part of it, for bases that do not fit one device.
    """

    processes: int = Field(default=1, gt=0)
    fsdp: bool = False
    command: tuple[str, ...] = ()


class GateSettings(Settings):
    """How strict the gate is.

    `alpha`: level of the gain and of each "not worse" but the protected skills', which is `regression_alpha`.
    `whole_margin` and `margin`: the losses to rule out. `harm_rate`: how often the search for harm may close
    a round that harmed nothing. `min_items`: decided items that each target needs. `max_undecided`: share of
    ungraded answers that closes the gate. `reported_only` names strata, or prefixes before a colon, that are
    shown but not tested.

    Held-out questions are answered greedily, or `samples` times each at `temperature`: an item then counts by
    its share of right answers.
    """

    alpha: float = Field(default=0.04, gt=0, lt=0.5)
    whole_margin: float = Field(default=0.05, gt=0, lt=1)
    margin: float = Field(default=0.10, gt=0, lt=1)
    regression_alpha: float = Field(default=0.01, gt=0, lt=0.5)
    harm_rate: float = Field(default=0.05, gt=0, lt=0.5)
    min_items: int = Field(default=20, gt=0)
    max_undecided: float = Field(default=0.02, ge=0, lt=1)
    protected: tuple[str, ...] = ()
    reported_only: tuple[str, ...] = ("ood",)
    samples: int = Field(default=1, gt=0)
    temperature: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _sampled(self) -> Self:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(
                f"{self.samples} samples at temperature 0 are all the same; set gate.temperature"
            )
        return self
