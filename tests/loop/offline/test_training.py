"""The data set in TRL without conversion, and the stages train and evaluate, with a tiny random student that
has a chat template."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import load_dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from loop.config import ConfigError, EngineSection
from loop.doors import open_student
from loop.offline import pipeline
from loop.offline.config import load_stat
from loop.offline.opening import open_bench
from streams.files import read_objects

BYTES = [f"<{number}>" for number in range(4)]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}Q: {{ message['content'] }}\nA:{% else %}"
    "{% generation %} {{ message['content'] }}{{ eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("student")
    torch.manual_seed(3)
    signs = [chr(code) for code in range(32, 127)] + ["\n"]
    words = ["<pad>", "<bos>", "<eos>", "<unk>", *signs]
    backend = Tokenizer(
        models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        chat_template=TEMPLATE,
    )
    shape = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    LlamaForCausalLM(
        LlamaConfig(vocab_size=len(words), max_position_embeddings=512, **shape, **special)
    ).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def test_the_prompt_is_the_chat_template_without_a_second_beginning(student: Path) -> None:
    # This tokenizer adds none by itself.
    assert open_student(student, EngineSection()).prompt("2+2?") == "<bos>Q: 2+2?\nA:"


def test_the_data_set_trains_in_trl_without_conversion(
    make_files: Callable[..., Path], student: Path, tmp_path: Path
) -> None:
    config = make_files()
    with open_bench(load_stat(config), tmp_path / "run") as bench:
        pipeline.run_stages(bench, "dataset")
    data = load_dataset(
        "json",
        data_files=str(tmp_path / "run" / "dataset.jsonl"),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    args = SFTConfig(
        output_dir=str(tmp_path / "out"), max_steps=2, per_device_train_batch_size=2, use_cpu=True,
        bf16=False, report_to="none", disable_tqdm=True, save_strategy="no", max_length=512,
        assistant_only_loss=True, logging_steps=1, dataloader_pin_memory=False,
    )  # fmt: skip
    model = LlamaForCausalLM.from_pretrained(student)
    trainer = SFTTrainer(
        model=model, args=args, train_dataset=data, processing_class=AutoTokenizer.from_pretrained(student)
    )
    assert trainer.train().global_step == 2
    row = trainer.train_dataset[0]
    answer = next(iter(read_objects(tmp_path / "run" / "dataset.jsonl")))["messages"][1]["content"]
    assert (
        sum(label != -100 for label in row["labels"]) == len(answer) + 2
    )  # its blank and its end of sequence


def test_the_command_trains_and_measures(
    make_files: Callable[..., Path], student: Path, tmp_path: Path
) -> None:
    config = make_files()
    sft = (
        "[train]\nmax_steps = 3\nbatch_size = 4\nmax_length = 200\n"
        "[train.sft]\nmicro_batch_size = 4\nlr = 1e-3\nlora_r = 4\n"
    )
    settings = (
        f'[student]\nbase = "{student}"\nmax_new_tokens = 8\ntemperature ='
        f" 0.0\n[engine.transformers]\nbatch_size = 4\n{sft}[evaluate]\nitems = 5\n"
    )
    config.write_text(config.read_text().replace('answers = "answers.jsonl"\n', "") + settings)
    events: list[tuple[str, str]] = []

    def run() -> None:
        with open_bench(load_stat(config), tmp_path / "run") as bench:
            pipeline.run_stages(bench, "evaluate", lambda event, stage, _: events.append((event, stage)))

    run()
    assert [stage for event, stage in events if event == "done"] == list(pipeline.STAGES)
    assert len(list(read_objects(tmp_path / "run" / "answers.jsonl"))) == 12
    trained: dict[str, Any] = next(iter(read_objects(tmp_path / "run" / "train.jsonl")))
    assert (
        trained["steps"] == 3
        and (tmp_path / "run" / trained["adapter"] / "adapter_model.safetensors").is_file()
    )
    measured = list(read_objects(tmp_path / "run" / "evaluate.jsonl"))
    figures = json.loads((tmp_path / "run" / "manifests" / "evaluate.json").read_text())["figures"]
    assert len(measured) == 5 == figures["test: questions"] and 0 <= figures["test: accuracy after"] <= 1
    events.clear()
    run()
    assert {event for event, _ in events} == {"kept"}


def with_rewards(config: Path, folder: Path) -> Path:
    config.write_text(
        config.read_text().replace("[filters]", f'[filters]\norder = ["prm", "gold"]\nprm = "{folder}"')
    )
    return config


def judge(config: Path) -> list[str]:
    """Run as far as the verdicts; the stages that were done, not kept."""
    done: list[str] = []
    with open_bench(load_stat(config), config.parent / "run") as bench:
        pipeline.run_stages(
            bench, "assessed", lambda event, stage, _: done.append(stage) if event == "done" else None
        )
    return done


def spoil(weights: Path) -> None:
    """Make a model unloadable but to all appearances the same."""
    stat = weights.stat()
    weights.write_bytes(bytes(stat.st_size))
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_a_process_reward_model_judges_and_is_asked_once(
    make_files: Callable[..., Path], student: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(student, tmp_path / "prm")
    config = with_rewards(make_files(), model)
    judge(config)
    rows = list(read_objects(config.parent / "run" / "assessed.jsonl"))
    assert {row["decided_by"] for row in rows} == {"prm"}  # noise, but an opinion on every answer
    kept = (config.parent / "run" / "work" / "rewards.jsonl").read_text().splitlines()
    assert len(kept) == 12
    (config.parent / "run" / "manifests" / "assessed.json").unlink()
    spoil(model / "model.safetensors")
    assert judge(config) == ["assessed"]
    assert list(read_objects(config.parent / "run" / "assessed.jsonl")) == rows, "it was asked again"


def test_a_reward_model_that_is_none_is_a_setting_to_correct(
    make_files: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "prm").mkdir()
    config = with_rewards(make_files(), tmp_path / "prm")
    with pytest.raises(ConfigError, match=r"filters\.prm: the reward model in .* cannot be loaded"):
        judge(config)
