"""What a round leaves on the device when it is over."""

from __future__ import annotations

import gc
import sys
from traceback import clear_frames


def forget(exc: BaseException | None) -> None:
    """Let go of what the functions that raised this error, or one before it, still hold: a student, in a
    trainer's. The error is told as before."""
    while exc is not None:
        clear_frames(exc.__traceback__)
        exc = exc.__cause__ or exc.__context__


def give_back_memory() -> None:
    """Give back what this process holds of the device's memory and does not use. A trainer and its student
    refer to each other, and PyTorch keeps for itself what it has freed."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
