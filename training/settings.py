"""How a round trains: settings alone, so that reading a configuration loads no model library."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator


class SftSettings(BaseModel):
    """How a round trains. `batch_size` is examples per optimizer step over all devices; `steps` is the whole
    budget.

    `micro_batch_size` (None: the whole batch) is what one device holds at a time. `save_every` 0 writes no
    checkpoints.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(gt=0)
    lora_r: int = Field(default=16, gt=0)
    lora_alpha: int = Field(default=32, gt=0)
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: str | tuple[str, ...] = "all-linear"
    lr: float = Field(default=2e-4, gt=0, allow_inf_nan=False)
    batch_size: int = Field(default=32, gt=0)
    micro_batch_size: int | None = Field(default=None, gt=0)
    warmup_ratio: float = Field(default=0.03, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    max_grad_norm: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    max_length: int = Field(default=1024, gt=1)
    gradient_checkpointing: bool = False
    seed: int = Field(default=0, ge=0)
    save_every: int = Field(default=50, ge=0)
    report_every: int = Field(default=10, gt=0)

    @model_validator(mode="after")
    def _batches_divide(self) -> SftSettings:
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of micro_batch_size {self.micro_batch_size}"
            )
        return self
