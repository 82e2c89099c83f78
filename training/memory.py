"""What a round needs of a device's memory, and the settings that follow where the configuration leaves them
open: number type, NF4 (QLoRA), micro-batches and gradient checkpointing.

`plan` is arithmetic on the base's shape; nothing is loaded. It counts weights, the adapter with its
gradients and AdamW's two moments, what layers keep for the backward pass (measured: `KEPT`), and the tile of
logits that TRL's fused head holds (`trl.kernels.chunked_logprob`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from training.settings import SftSettings

Device = Literal["cpu", "cuda"]
DType = Literal["float32", "bfloat16"]

KEPT: dict[DType, float] = {"float32": 1.15, "bfloat16": 1.5}
"""Numbers that layers keep of a token for each input and output feature of their matrices, measured on Llama
and Qwen3 shapes with LoRA (tests/training/test_memory.py): 1.02 to 1.13, and 1.32 to 1.52 under autocast."""
ADAPTER_BYTES = 16
"""Of a weight of the adapter: itself, its gradient and two moments, in 32 bits."""
NF4_BYTES = 0.57
"""Of a weight in NF4 with its block's constants, quantised twice (QLoRA, section 3)."""
USABLE = 0.88
"""Of a device's memory; the rest is lost between the allocator's blocks."""
FIXED_BYTES: dict[Device, float] = {"cuda": 1.2e9, "cpu": 0.6e9}
"""Libraries and their context."""
ENOUGH_TOKENS = 8_192
"""Positions of a micro-batch beyond which a device gains no speed."""
CPU_ROOM_BYTES = 0.25e9
"""What a CPU keeps for the backward pass: more made nothing faster (docs/LOG.md, rounds beside stock TRL)."""
WORTH_KEEPING: dict[Device, int] = {"cuda": 2_048, "cpu": 128}
"""Positions of a micro-batch from which keeping the layers is better than larger micro-batches."""
LOGIT_TOKENS, LOGIT_WORDS, LOGIT_BYTES = 4_096, 32_768, 6.0
"""The largest tile of logits, and what its numbers take: in 16 bits, and once in 32 for the gradient."""


@dataclass(frozen=True)
class ModelShape:
    """A base student as far as memory is concerned. `features` are the inputs and outputs of all matrices
    that get an adapter, `embedding` the weights that are never quantised."""

    parameters: int
    hidden: int
    layers: int
    vocabulary: int
    features: int

    @property
    def embedding(self) -> int:
        return min(self.hidden * self.vocabulary, self.parameters)


@dataclass(frozen=True)
class MemoryPlan:
    """How a round trains on a device. Sizes in bytes; `peak` is an estimate.

    A micro-batch has up to `tokens` positions, or one example that is longer. Those of more than
    `kept_tokens` recompute their layers in the backward pass (gradient checkpointing), the others keep them.
    `max_length`: the most tokens of an example.
    """

    dtype: DType
    qlora: bool
    max_length: int
    tokens: int
    kept_tokens: int
    parameters: int
    weights: float
    peak: float
    memory: float

    @property
    def fits(self) -> bool:
        return self.peak <= USABLE * self.memory

    @property
    def micro_batch(self) -> int:
        """How many of the longest examples a micro-batch has."""
        return max(1, self.tokens // self.max_length)

    def told(self) -> str:
        """One line for people."""
        kind = "NF4" if self.qlora else {"bfloat16": "bf16", "float32": "fp32"}[self.dtype]
        recomputed = "always" if not self.kept_tokens else f"above {self.kept_tokens:,} tokens"
        if self.kept_tokens >= max(self.tokens, self.max_length):
            recomputed = "never"
        qlora = "yes" if self.qlora else "no"
        return (
            f"{_count(self.parameters)} parameters, {_gigabytes(self.weights)} GB in {kind}, QLoRA: {qlora},"
            f" micro-batch {self.micro_batch} ({self.tokens:,} tokens), layers recomputed: {recomputed},"
            f" about {_gigabytes(self.peak)} of {_gigabytes(self.memory)} GB"
        )


def plan(
    shape: ModelShape,
    settings: SftSettings,
    max_length: int,
    share: int,
    device: Device,
    memory: float,
    shards: int = 1,
) -> MemoryPlan:
    """The plan for a base of this shape, `share` examples a step and process, and `memory` bytes; the base
    lies in `shards` parts on as many devices (FSDP).

    What `settings` say is taken as it is. NF4 is chosen on CUDA only, when nothing else fits. When nothing
    fits at all, the plan is the most frugal one and its peak is above the memory (`MemoryPlan.fits`).
    """
    choices = (False, True) if settings.qlora is None and device == "cuda" else (bool(settings.qlora),)
    plans = [_plan(shape, settings, max_length, share, device, memory, shards, qlora) for qlora in choices]
    return next((chosen for chosen in plans if chosen.fits), plans[-1])


def _plan(
    shape: ModelShape, settings: SftSettings, max_length: int, share: int, device: Device, memory: float,
    shards: int, qlora: bool,
) -> MemoryPlan:  # fmt: skip
    dtype: DType = settings.dtype or ("bfloat16" if device == "cuda" else "float32")
    width = 2 if dtype == "bfloat16" else 4
    weights = width * float(shape.parameters)
    if qlora:
        weights = NF4_BYTES * (shape.parameters - shape.embedding) + 2.0 * shape.embedding
    whole = share * max_length  # positions of a step, at most
    logits = LOGIT_BYTES * min(whole, LOGIT_TOKENS) * min(shape.vocabulary, LOGIT_WORDS)
    local = weights / shards + (shards > 1) * 2 * weights / shape.layers  # and two layers that are gathered
    fixed = local + ADAPTER_BYTES * settings.lora_r * shape.features + logits + FIXED_BYTES[device]
    kept = KEPT[dtype] * shape.features * width  # bytes a token
    recomputed = float(shape.layers * shape.hidden * width) + kept / shape.layers
    room = max(0.0, USABLE * memory - fixed)
    if device == "cpu":
        room = min(room, CPU_ROOM_BYTES)

    enough = min(ENOUGH_TOKENS, whole)
    kept_tokens = int(room / kept)
    if settings.gradient_checkpointing is not None:
        kept_tokens = 0 if settings.gradient_checkpointing else max(whole, max_length)
    if settings.micro_batch_size is not None:
        tokens = min(settings.micro_batch_size * max_length, whole)
    elif kept_tokens >= min(enough, WORTH_KEEPING[device]):
        tokens = min(enough, kept_tokens)
    else:
        tokens = max(1, min(enough, int(room / recomputed)))
    longest = max(tokens, max_length)
    held = max(kept * min(longest, kept_tokens), recomputed * longest * (longest > kept_tokens))
    return MemoryPlan(
        dtype, qlora, max_length, tokens, kept_tokens, shape.parameters, weights,
        fixed + held, memory,
    )  # fmt: skip


def _count(parameters: int) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M")):
        if parameters >= size:
            return f"{parameters / size:.1f} {unit}"
    return f"{parameters:,}"


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.0f}" if size >= 20e9 else f"{size / 1e9:.1f}"
