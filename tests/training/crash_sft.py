"""Run by test_sft.py in a process of its own: train, and kill this process with SIGKILL at a step."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch

from training.mix import read_dataset
from training.settings import SftSettings
from training.sft import train_round

if __name__ == "__main__":
    torch.set_num_threads(1)
    settings, base, champion, data, out, kill_at = sys.argv[1:]

    def on_progress(step: int, total: int, loss: float) -> None:
        if step == int(kill_at):
            os.kill(os.getpid(), signal.SIGKILL)

    train_round(
        SftSettings.model_validate_json(Path(settings).read_bytes()),
        Path(base),
        Path(champion) if champion else None,
        read_dataset(Path(data)),
        Path(out),
        on_progress,
    )
