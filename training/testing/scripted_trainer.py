"""A trainer that computes nothing: for tests of the loop. Shipped, so that nothing has to be patched."""

from __future__ import annotations

import math

import numpy as np
from safetensors.numpy import save_file

from agent.chance import rank
from serving.adapter_files import CONFIG_FILE, WEIGHTS_FILE, adapter_sha256
from streams.files import write_json
from training.trainer import Progress, TrainedAdapter, TrainingJob, unwatched

TENSOR = "base_model.model.layer.lora_{}.weight"


class ScriptedTrainer:
    """Writes a sound adapter of two small matrices that follow from the job's examples, seed and champion.

    What it was told to train on is kept in `jobs`.
    """

    def __init__(self) -> None:
        self.jobs: list[TrainingJob] = []

    def train(self, job: TrainingJob, on_progress: Progress = unwatched) -> TrainedAdapter:
        """See `training.trainer.Trainer.train`."""
        self.jobs.append(job)
        champion = "" if job.champion is None else adapter_sha256(job.champion)
        drawn = np.random.default_rng(
            rank(job.seed, champion, str(job.steps), *(example.example_id for example in job.examples))
        )
        adapter = job.out_dir / "adapter"
        adapter.mkdir(parents=True, exist_ok=True)
        write_json(adapter / CONFIG_FILE, {"peft_type": "LORA", "r": 1, "target_modules": ["layer"]})
        shapes = {"A": (1, 2), "B": (2, 1)}
        save_file(
            {TENSOR.format(name): drawn.normal(size=shape) for name, shape in shapes.items()},
            adapter / WEIGHTS_FILE,
        )
        on_progress(job.steps, job.steps, 0.0)
        tokens = sum(len(f"{example.prompt} {example.completion}".split()) for example in job.examples)
        return TrainedAdapter(adapter, adapter_sha256(adapter), job.steps, 0.0, tokens, math.nan)
