"""Run by test_sft.py in a process of its own: train, and kill this process with SIGKILL at a step."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch

from training.mix import read_dataset
from training.settings import SftSettings
from training.sft import SftTrainer
from training.trainer import TrainingJob

if __name__ == "__main__":
    torch.set_num_threads(1)
    file, base, champion, data, out, kill_at = sys.argv[1:]

    def on_progress(step: int, total: int, loss: float) -> None:
        if step == int(kill_at):
            os.kill(os.getpid(), signal.SIGKILL)

    settings, size = json.loads(Path(file).read_text())
    start = Path(champion) if champion else None
    job = TrainingJob(Path(base), start, read_dataset(Path(data)), Path(out), **size)
    SftTrainer(SftSettings.model_validate(settings)).train(job, on_progress)
