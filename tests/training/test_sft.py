"""The training round: continues an adapter, repeats exactly, survives SIGKILL, refuses what would teach
nothing or the wrong thing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from agent.items import Example
from serving.adapter_files import CorruptAdapter, adapter_sha256
from tests.warm import run_warm
from training.adapters import load_check
from training.attempts import begin_attempt, sweep_attempts
from training.errors import (
    AdapterError,
    DatasetError,
    ExampleTooLong,
    NothingLearned,
    TrainingDiverged,
    TrainingError,
)
from training.mix import write_dataset
from training.settings import SftSettings
from training.sft import SftTrainer, finished_result
from training.trainer import Progress, StopTraining, TrainedAdapter, TrainingJob, unwatched

SETTINGS = SftSettings(lora_r=4, lora_alpha=8, lora_dropout=0.1, lr=5e-3, save_every=5, report_every=1)
SIZE = {"steps": 12, "batch_size": 8, "seed": 3}


def train(
    base: Path,
    champion: Path | None,
    examples: Sequence[Example],
    out_dir: Path,
    on_progress: Progress = unwatched,
    **changes: Any,
) -> TrainedAdapter:
    """A round with `SETTINGS` and `SIZE`, changed."""
    recipe = {name: changes.pop(name) for name in SftSettings.model_fields if name in changes}
    job = TrainingJob(base, champion, examples, out_dir, **{**SIZE, **changes})
    return SftTrainer(SETTINGS.model_copy(update=recipe)).train(job, on_progress)


@pytest.fixture(scope="module")
def champion(llama: Path, make_examples: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A first adapter on the Llama, trained without disturbance."""
    return train(llama, None, make_examples(60), tmp_path_factory.mktemp("champion")).adapter_dir


@pytest.mark.parametrize("arch", ["llama", "qwen"])
def test_a_round_learns_and_repeats_exactly(
    arch: str, request: pytest.FixtureRequest, make_examples: Callable, tmp_path: Path
) -> None:
    base, seen = request.getfixturevalue(arch), []
    first = train(base, None, make_examples(60), tmp_path / "a", lambda *report: seen.append(report))
    again = train(base, None, make_examples(60), tmp_path / "b")
    assert first.sha256 == again.sha256 == adapter_sha256(first.adapter_dir)
    assert [step for step, _, _ in seen] == list(range(1, 13)) and seen[-1][2] == first.final_loss < seen[0][
        2
    ]
    assert sorted(path.name for path in first.adapter_dir.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    other = train(base, None, make_examples(60), tmp_path / "c", seed=4)
    assert other.sha256 != first.sha256


def test_a_finished_round_is_returned_without_training(
    llama: Path, make_examples: Callable, tmp_path: Path
) -> None:
    first = train(llama, None, make_examples(60), tmp_path)

    def never(step: int, total: int, loss: float) -> None:
        raise AssertionError("trained again")

    assert train(llama, None, make_examples(60), tmp_path, never) == first == finished_result(tmp_path)
    with pytest.raises(TrainingError, match="other settings, data, base or champion"):
        train(llama, None, make_examples(61), tmp_path)
    save_file({"x": torch.zeros(1)}, tmp_path / "adapter" / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match="is not the adapter"):
        train(llama, None, make_examples(60), tmp_path)


def test_a_round_continues_the_champion(
    llama: Path, champion: Path, make_examples: Callable, tmp_path: Path
) -> None:
    tiny = {"lr": 1e-6, "steps": 1, "warmup_ratio": 0.0}
    result = train(llama, champion, make_examples(8, "sub"), tmp_path / "near", **tiny)
    before = load_file(champion / "adapter_model.safetensors")
    after = load_file(result.adapter_dir / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    assert max(float((before[name] - after[name]).abs().max()) for name in before) < 1e-4
    assert result.sha256 != adapter_sha256(champion)
    with pytest.raises(AdapterError, match="a lineage keeps its shape"):
        train(llama, champion, make_examples(8), tmp_path / "r8", lora_r=8)


@pytest.mark.parametrize(
    ("kill_at", "continues", "anew"), [(3, False, True), (8, True, True), (12, False, False)]
)
def test_a_killed_round_resumes_to_the_same_bytes(
    kill_at: int,
    continues: bool,
    anew: bool,
    llama: Path,
    champion: Path,
    make_examples: Callable,
    tmp_path: Path,
) -> None:
    """In the same directory, or in that of another attempt."""
    examples, start = make_examples(60, "mul"), champion if continues else None
    write_dataset(tmp_path / "data.jsonl", examples)
    undisturbed = train(llama, start, examples, tmp_path / "undisturbed")
    (tmp_path / "settings.json").write_text(json.dumps([SETTINGS.model_dump(), SIZE]))
    killed = run_warm(
        Path(__file__).with_name("crash_sft.py"),
        tmp_path / "settings.json",
        llama,
        start or "",
        tmp_path / "data.jsonl",
        tmp_path / "killed",
        kill_at,
    )
    assert killed.returncode == -9
    assert finished_result(tmp_path / "killed") is None
    if kill_at == 8:
        shutil.copytree(
            tmp_path / "killed/checkpoints/checkpoint-5", tmp_path / "killed/checkpoints/checkpoint-6"
        )
        (tmp_path / "killed/checkpoints/checkpoint-6/optimizer.pt").write_bytes(b"half")
    steps: list[int] = []
    attempt = begin_attempt(tmp_path / "killed", 2) if anew else tmp_path / "killed"
    resumed = train(llama, start, examples, attempt, lambda step, total, loss: steps.append(step))
    assert steps[0] == {3: 1, 8: 6, 12: 11}[kill_at]
    assert resumed.sha256 == undisturbed.sha256
    assert (resumed.final_loss, resumed.tokens) == (undisturbed.final_loss, undisturbed.tokens)
    assert not anew or begin_attempt(tmp_path / "killed", 3) == attempt, "it has finished"


def test_what_on_progress_raises_stops_the_round(
    llama: Path, make_examples: Callable, tmp_path: Path
) -> None:
    def stop(step: int, total: int, loss: float) -> None:
        raise KeyError("lease lost")

    with pytest.raises(KeyError, match="lease lost"):
        train(llama, None, make_examples(60), tmp_path, stop)


def test_a_round_that_has_to_leave_saves_a_checkpoint_first(
    llama: Path, make_examples: Callable, tmp_path: Path
) -> None:
    def leave(step: int, total: int, loss: float) -> None:
        if step == 3:
            raise StopTraining

    undisturbed = train(llama, None, make_examples(60), tmp_path / "undisturbed")
    with pytest.raises(StopTraining):
        train(llama, None, make_examples(60), tmp_path / "left", leave)
    assert [path.name for path in (tmp_path / "left/checkpoints").glob("checkpoint-*")] == ["checkpoint-3"]
    steps: list[int] = []
    resumed = train(
        llama, None, make_examples(60), tmp_path / "left", lambda step, total, loss: steps.append(step)
    )
    assert steps[0] == 4
    assert resumed.sha256 == undisturbed.sha256


def too_long(example: Example) -> Example:
    completion = " ".join("123456789")
    return example.model_copy(
        update={"example_id": f"long-{example.example_id}", "completion": f"{completion} {completion}"}
    )


def test_a_too_long_example_is_left_out_and_counted(
    llama: Path, make_examples: Callable, tmp_path: Path
) -> None:
    """And nothing is truncated: the adapter is that of a data set without it."""
    examples, size = make_examples(20), {"max_length": 14, "steps": 2}
    result = train(llama, None, [*examples, too_long(examples[0])], tmp_path / "a", **size)
    assert result.too_long == 1 and finished_result(tmp_path / "a") == result
    without = train(llama, None, examples, tmp_path / "b", **size)
    assert without.sha256 == result.sha256 and without.too_long == 0


def test_replay_alone_is_not_trained_on(llama: Path, make_examples: Callable, tmp_path: Path) -> None:
    examples = [*map(too_long, make_examples(4)), *make_examples(8, "sub", "replay")]
    with pytest.raises(ExampleTooLong, match=r"4 of 12 examples exceed max_length 14, .* nothing new"):
        train(llama, None, examples, tmp_path, max_length=14)


def test_attempts_do_not_disturb_each_other(llama: Path, make_examples: Callable, tmp_path: Path) -> None:
    """The first worker is frozen in its ninth step; the second one finishes; then the first one does."""
    examples, second = make_examples(60), []

    def frozen(step: int, total: int, loss: float) -> None:
        if step == 9:
            attempt = begin_attempt(tmp_path, 7)
            seen: list[int] = []
            second.append(train(llama, None, examples, attempt, lambda done, *_: seen.append(done)))
            assert seen[0] == 6, "it resumes from the first one's checkpoint"

    first = train(llama, None, examples, begin_attempt(tmp_path, 3), frozen)
    assert first.adapter_dir != second[0].adapter_dir
    kept = second[0].adapter_dir.parent
    sweep_attempts(tmp_path, kept)
    assert [path.name for path in tmp_path.iterdir()] == [kept.name] and finished_result(kept) == second[0]


def test_bad_data_is_refused(llama: Path, make_examples: Callable, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no examples"):
        train(llama, None, [], tmp_path / "a")
    empty = make_examples(3)[0].model_copy(update={"completion": " "})
    with pytest.raises(DatasetError, match="empty completion"):
        train(llama, None, [empty], tmp_path / "b")


def test_a_base_that_is_not_there(make_examples: Callable, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"no \.safetensors weights"):
        train(tmp_path, None, make_examples(3), tmp_path / "a")


def test_divergence_is_an_error(llama: Path, champion: Path, make_examples: Callable, tmp_path: Path) -> None:
    wild = shutil.copytree(champion, tmp_path / "wild")
    weights = load_file(champion / "adapter_model.safetensors")
    save_file({name: weight * 1e30 for name, weight in weights.items()}, wild / "adapter_model.safetensors")
    with pytest.raises(TrainingDiverged, match="loss nan"):
        train(llama, wild, make_examples(60), tmp_path / "out")
    assert finished_result(tmp_path / "out") is None


def test_weights_that_do_not_move_are_an_error(
    llama: Path, champion: Path, make_examples: Callable, tmp_path: Path
) -> None:
    with pytest.raises(NothingLearned, match="trainable tensors moved"):
        train(llama, champion, make_examples(60), tmp_path, lr=1e-30)


def test_a_blended_round_goes_part_of_the_way_from_its_champion(
    llama: Path, champion: Path, make_examples: Callable, tmp_path: Path
) -> None:
    def weights(base: Path | None, name: str, share: float) -> dict[str, torch.Tensor]:
        made = train(llama, base, make_examples(60), tmp_path / name, blend=share).adapter_dir
        return load_file(made / "adapter_model.safetensors")

    before, whole, part = (
        load_file(champion / "adapter_model.safetensors"),
        *(weights(champion, f"continued-{share}", share) for share in (1.0, 0.75)),
    )
    assert all(torch.allclose(part[name], torch.lerp(before[name], whole[name], 0.75)) for name in whole)
    fresh, half = weights(None, "fresh", 1.0), weights(None, "fresh-half", 0.5)
    for name, weight in fresh.items():
        assert torch.allclose(half[name], weight * (0.5 if "lora_B" in name else 1.0))


@pytest.mark.parametrize("damage", ["truncated", "nan", "pickle", "no config", "dora", "not lora"])
def test_a_corrupt_champion_is_refused(
    damage: str, llama: Path, champion: Path, make_examples: Callable, tmp_path: Path
) -> None:
    adapter = shutil.copytree(champion, tmp_path / "adapter")
    weights, config = adapter / "adapter_model.safetensors", adapter / "adapter_config.json"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-10])
    elif damage == "nan":
        save_file({name: tensor * float("nan") for name, tensor in load_file(weights).items()}, weights)
    elif damage == "pickle":
        torch.save({}, adapter / "adapter_model.bin")
    elif damage == "no config":
        config.unlink()
    else:
        changed = {"use_dora": True} if damage == "dora" else {"peft_type": "IA3"}
        config.write_text(json.dumps({**json.loads(config.read_text()), **changed}))
    with pytest.raises(CorruptAdapter):
        load_check(adapter)
    with pytest.raises(CorruptAdapter):
        train(llama, adapter, make_examples(60), tmp_path / "out")


def test_micro_batches_train_the_same_step(llama: Path, make_examples: Callable, tmp_path: Path) -> None:
    plain = {"lora_dropout": 0.0, "steps": 3}
    whole = train(llama, None, make_examples(60), tmp_path / "whole", **plain)
    parts = train(llama, None, make_examples(60), tmp_path / "parts", **plain, micro_batch_size=2)
    left = load_file(whole.adapter_dir / "adapter_model.safetensors")
    right = load_file(parts.adapter_dir / "adapter_model.safetensors")
    assert max(float((left[name] - right[name]).abs().max()) for name in left) < 1e-3
