"""Rounds in child processes: two share a round as one would do it, and a killed one resumes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from agent.items import Example
from training.errors import DatasetError, TrainingError
from training.launch import LOG, LaunchTrainer
from training.settings import LaunchSettings, SftSettings
from training.sft import SftTrainer
from training.trainer import StopTraining, TrainingJob

SETTINGS = SftSettings(lora_r=2, lora_alpha=4, lr=5e-3, save_every=2, report_every=1)
TWO = LaunchTrainer(SETTINGS, LaunchSettings(processes=2))


@pytest.fixture
def job(llama: Path, make_examples: Callable[[int], list[Example]], tmp_path: Path) -> TrainingJob:
    return TrainingJob(llama, None, make_examples(24), tmp_path / "round", 6, 4, 64)


def weights(adapter: Path) -> dict[str, torch.Tensor]:
    return load_file(adapter / "adapter_model.safetensors")


@pytest.mark.long
def test_two_processes_share_a_round_and_it_survives_their_death(job: TrainingJob) -> None:
    alone = SftTrainer(SETTINGS).train(replace(job, out_dir=job.out_dir / "alone"))
    together = TWO.train(replace(job, out_dir=job.out_dir / "together"))
    assert (together.steps, together.tokens) == (alone.steps, alone.tokens)
    expected, seen = weights(alone.adapter_dir), weights(together.adapter_dir)
    assert max(float((expected[name] - seen[name]).abs().max()) for name in expected) < 1e-4
    assert together.final_loss == pytest.approx(alone.final_loss, abs=1e-4)

    killed, reports = replace(job, out_dir=job.out_dir / "killed"), list[int]()

    def kill_one(step: int, total: int, loss: float) -> None:
        if step == 5:
            os.kill(_workers(killed.out_dir)[-1], signal.SIGKILL)

    with pytest.raises(TrainingError, match="died"):
        TWO.train(killed, kill_one)
    assert not _workers(killed.out_dir)
    resumed = TWO.train(killed, lambda step, total, loss: reports.append(step))
    assert resumed.sha256 == together.sha256 and reports[0] > 1


@pytest.mark.long
def test_a_round_that_is_stopped_keeps_what_was_trained(job: TrainingJob) -> None:
    """The steps since the last checkpoint were lost, `save_every` at most."""
    trainer = LaunchTrainer(SETTINGS.model_copy(update={"save_every": 0}), LaunchSettings(processes=2))
    long, reports = replace(job, steps=200), list[int]()

    def stop(step: int, total: int, loss: float) -> None:
        raise StopTraining

    with pytest.raises(StopTraining):
        trainer.train(long, stop)
    assert not _workers(long.out_dir)
    resumed = trainer.train(long, lambda step, total, loss: reports.append(step))
    assert reports[0] > 1 and reports == list(range(reports[0], 201)) and resumed.steps == 200


@pytest.mark.slow
def test_a_student_in_parts_trains_and_its_adapter_is_one_for_everybody(
    job: TrainingJob, llama: Path
) -> None:
    """FSDP: each of two processes holds a part of the base; PEFT loads what comes out of it."""
    ten, settings = replace(job, steps=10), SETTINGS.model_copy(update={"save_every": 0})
    alone = SftTrainer(settings).train(replace(ten, out_dir=job.out_dir / "alone"))
    sharded = LaunchTrainer(settings, LaunchSettings(processes=2, fsdp=True))
    parts = sharded.train(replace(ten, out_dir=job.out_dir / "parts"))
    assert (parts.steps, parts.tokens) == (10, alone.tokens)
    expected, seen = weights(alone.adapter_dir), weights(parts.adapter_dir)
    assert expected.keys() == seen.keys()
    assert max(float((expected[name] - seen[name]).abs().max()) for name in expected) < 1e-3
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama), parts.adapter_dir)
    assert sum(weight.abs().sum() for name, weight in model.named_parameters() if "lora_B" in name) > 0


def test_what_a_child_says_comes_through(job: TrainingJob) -> None:
    empty = job.examples[0].model_copy(update={"completion": " "})
    with pytest.raises(DatasetError, match="empty completion"):
        LaunchTrainer(SETTINGS, LaunchSettings()).train(replace(job, examples=(empty,)))


def test_a_command_that_trains_nothing_is_shown_with_its_output(job: TrainingJob) -> None:
    said = LaunchTrainer(SETTINGS, LaunchSettings(command=("sh", "-c", "echo no such queue; exit 1")))
    with pytest.raises(TrainingError, match="no such queue"):
        said.train(job)
    assert "no such queue" in (job.out_dir / LOG).read_text()
    with pytest.raises(TrainingError, match="cannot start nowhere/torchrun"):
        LaunchTrainer(SETTINGS, LaunchSettings(command=("nowhere/torchrun",))).train(job)


def test_a_batch_that_processes_cannot_share_is_an_error() -> None:
    assert SETTINGS.share(8, 2) == 4
    with pytest.raises(ValueError, match="batch_size 6 is not a multiple of 4 processes"):
        SETTINGS.share(6, 4)


def _workers(out_dir: Path) -> list[int]:
    """Processes that train in `out_dir`; the launcher, which is the lowest, is left out."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                arguments = (process / "cmdline").read_bytes()
            except OSError:
                continue
            if b"training.launched" in arguments and str(out_dir).encode() in arguments:
                found.append(int(process.name))
    return sorted(found)[1:]
