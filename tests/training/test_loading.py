"""A version of ours is loaded by other people's programs without ours: PEFT, transformers, MLflow; and its
data by TRL."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
import torch
from datasets import load_dataset
from mlflow import MlflowClient
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from training.adapters import base_name, base_sha256
from training.encode import encode
from training.mix import write_as_trained
from training.registry import MlflowRegistry
from training.settings import SftSettings
from training.sft import SftTrainer
from training.trainer import BaseName, TrainedAdapter, TrainingJob
from training.versions import Lineage

QUESTION = "add 1 and 2 0 ?"
pytestmark = pytest.mark.filterwarnings(
    "ignore:The ``noload`` loader strategy:sqlalchemy.exc.SADeprecationWarning"
)


@pytest.fixture(scope="module")
def trained(llama: Path, make_examples: Callable, tmp_path_factory: pytest.TempPathFactory) -> TrainedAdapter:
    out = tmp_path_factory.mktemp("trained") / "out"
    settings = SftSettings(lora_r=4, lora_alpha=8, lr=5e-3, report_every=2, save_every=0)
    return SftTrainer(settings).train(TrainingJob(llama, None, make_examples(20), out, 6, 4, 64))


@pytest.fixture(scope="module")
def version(
    llama: Path, trained: TrainedAdapter, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, str]:
    """A registered version: the tracking server's address, and the version's."""
    root = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{root}/mlflow.db"
    registry = MlflowRegistry(uri, "pupil", root / "artifacts")
    registry.register_base(llama)
    run_id = registry.start_run("r001")
    lineage = Lineage(1, base_sha256(llama), registry.log_adapter(run_id, trained.adapter_dir), "d", "open")
    made = registry.create_version("r001", run_id, lineage, "It adds.")
    assert MlflowClient(uri).get_model_version("pupil", "2").description == "It adds."
    return uri, f"models:/pupil/{made.version}"


@pytest.fixture
def logits(llama: Path, trained: TrainedAdapter) -> Callable[[object], torch.Tensor]:
    ids = AutoTokenizer.from_pretrained(llama)(QUESTION, return_tensors="pt")["input_ids"]

    def of(model: object) -> torch.Tensor:
        with torch.inference_mode():
            return model(input_ids=ids).logits  # type: ignore[operator]

    return of


def test_peft_and_transformers_find_the_base_by_the_adapter_s_word(
    version: tuple[str, str], llama: Path, logits: Callable, tmp_path: Path
) -> None:
    mlflow.set_tracking_uri(version[0])
    fetched = mlflow.artifacts.download_artifacts(version[1], dst_path=str(tmp_path))
    ours = logits(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama), fetched))
    assert not torch.equal(ours, logits(AutoModelForCausalLM.from_pretrained(llama)))
    auto = AutoPeftModelForCausalLM.from_pretrained(fetched)
    assert torch.equal(logits(auto), ours)
    name = base_name(llama)
    config = auto.peft_config["default"]
    assert (config.base_model_name_or_path, config.revision) == (name.name, name.revision)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(fetched)), ours)


@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning")  # MLflow's own
def test_mlflow_loads_a_version_by_itself(
    version: tuple[str, str], trained: TrainedAdapter, llama: Path, logits: Callable
) -> None:
    mlflow.set_tracking_uri(version[0])
    pipeline = mlflow.transformers.load_model(version[1])
    ours = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama), trained.adapter_dir)
    assert torch.equal(logits(pipeline.model), logits(ours))
    answer = mlflow.pyfunc.load_model(version[1]).predict([QUESTION])
    assert len(answer) == 1 and isinstance(answer[0], str)


def test_a_snapshot_of_the_hub_keeps_its_name(llama: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--pupil-1B" / "snapshots" / "abc123"
    assert base_name(snapshot) == BaseName("org/pupil-1B", "abc123")
    assert base_name(llama) == BaseName(str(llama), base_sha256(llama))


def test_the_documented_recipe_gives_the_hashes(trained: TrainedAdapter, llama: Path, tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "registry.md").read_text()
    (recipe,) = [part.split("```")[0] for part in text.split("```python\n") if "def sha256_of" in part]
    names: dict[str, Callable] = {}
    exec(recipe, names)
    assert names["adapter_sha256"](trained.adapter_dir) == trained.sha256
    base = shutil.copytree(llama, tmp_path / "base")
    (base / "chat_template.jinja").write_text("{{ messages }}")
    (base / "README.md").write_text("not of the student")
    assert names["base_sha256"](base) == base_sha256(base) != base_sha256(llama)


def test_the_curve_is_reported_by_step(trained: TrainedAdapter) -> None:
    assert [point.step for point in trained.curve] == [2, 4, 6]
    assert trained.curve[-1].loss == trained.final_loss and trained.curve[0].learning_rate > 0
    assert all(point.grad_norm > 0 and point.tokens_per_s > 0 for point in trained.curve)
    assert sorted(point.at_ms for point in trained.curve) == [point.at_ms for point in trained.curve]


def test_the_data_as_trained_is_what_trl_makes_of_it(
    llama: Path, make_examples: Callable, tmp_path: Path
) -> None:
    examples, tokenizer = make_examples(12), AutoTokenizer.from_pretrained(llama)
    spaced = [e.model_copy(update={"completion": f" {e.completion}"}) for e in examples]
    write_as_trained(tmp_path / "train.jsonl", spaced)
    data = load_dataset(
        "json",
        data_files=str(tmp_path / "train.jsonl"),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    args = SFTConfig(
        output_dir=str(tmp_path / "out"), max_steps=1, per_device_train_batch_size=4, use_cpu=True,
        bf16=False, report_to="none", disable_tqdm=True, save_strategy="no", dataloader_pin_memory=False,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(llama)
    trainer = SFTTrainer(model=model, args=args, train_dataset=data, processing_class=tokenizer)
    rows = [(list(row["input_ids"]), list(row["labels"])) for row in trainer.train_dataset]
    assert rows == [(row.input_ids, row.labels) for row in encode(spaced, tokenizer, 64)]
    assert trainer.train().global_step == 1
