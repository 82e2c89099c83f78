"""Every trainer passes the suite of the port."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from agent.items import Example
from training.grpo import GrpoTrainer
from training.launch import LaunchTrainer
from training.settings import GrpoSettings, LaunchSettings, SftSettings
from training.sft import SftTrainer
from training.testing.trainer_conformance import CHECKS, Check
from training.trainer import Trainer, TrainingJob

SETTINGS = SftSettings(lora_r=2, lora_alpha=4, lora_dropout=0.1, lr=5e-3, save_every=2, report_every=1)
SFT = SftTrainer(SETTINGS)
LAUNCH = LaunchTrainer(SETTINGS, LaunchSettings())
GRPO = GrpoTrainer(
    GrpoSettings(generations=4, max_new_tokens=8, lr=5e-3, save_every=2, report_every=1), SETTINGS
)


def longer(reference: str, answer: str) -> bool:
    """A reward that an untrained student wins now and then."""
    return len(answer.split()) > len(reference.split())


@pytest.mark.parametrize(
    "trainer",
    [
        pytest.param(SFT, id="sft"),
        pytest.param(GRPO, id="grpo"),
        pytest.param(LAUNCH, id="launch", marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_trainer_keeps_the_contract(
    check: Check, trainer: Trainer, llama: Path, make_examples: Callable[[int], list[Example]], tmp_path: Path
) -> None:
    check(trainer, TrainingJob(llama, None, make_examples(24), tmp_path / "round", 6, 4, 64, right=longer))
