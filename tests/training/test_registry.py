"""The registry on a real MLflow store (SQLite): every step can be repeated, aliases are right after a crash
in between."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from serving.adapter_files import CorruptAdapter, adapter_sha256
from training.adapters import base_sha256
from training.errors import RegistryError, RegistryUnavailable
from training.evaluate import evaluate
from training.gate import judge
from training.mix import write_dataset
from training.registry import MlflowRegistry
from training.versions import Lineage, VersionInfo

pytestmark = pytest.mark.filterwarnings(
    "ignore:The ``noload`` loader strategy:sqlalchemy.exc.SADeprecationWarning"
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    root = tmp_path_factory.mktemp("mlflow")
    return f"sqlite:///{root}/mlflow.db", root / "artifacts"


@pytest.fixture
def registry(store: tuple[str, Path], request: pytest.FixtureRequest) -> MlflowRegistry:
    return MlflowRegistry(store[0], request.node.name, store[1])


@pytest.fixture
def make_adapter(tmp_path: Path) -> Callable[[int], Path]:
    def make(seed: int) -> Path:
        adapter = tmp_path / f"adapter-{seed}"
        adapter.mkdir()
        (adapter / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4}')
        save_file({"lora_A": torch.full((4, 4), float(seed))}, adapter / "adapter_model.safetensors")
        return adapter

    return make


def train(registry: MlflowRegistry, llama: Path, adapter: Path, round_id: str) -> VersionInfo:
    run_id = registry.start_run(round_id)
    sha256 = registry.log_adapter(run_id, adapter)
    parent = registry.champion().version
    return registry.create_version(
        round_id, run_id, Lineage(parent, base_sha256(llama), sha256, "data", "promote")
    )


def test_the_base_is_version_one_and_champion(registry: MlflowRegistry, llama: Path, qwen: Path) -> None:
    with pytest.raises(RegistryError, match="no champion yet"):
        registry.champion()
    base = registry.register_base(llama)
    assert registry.register_base(llama) == base == registry.champion()
    assert (base.version, base.kind, base.sha256, base.parent, base.adapter_dir) == (
        1,
        "base",
        base_sha256(llama),
        None,
        None,
    )
    assert registry.download(1, llama / "unused") is None
    with pytest.raises(RegistryError, match="registered with base"):
        registry.register_base(qwen)


def test_a_run_is_resumed_or_adopted(registry: MlflowRegistry) -> None:
    run_id = registry.start_run("round-1")
    registry.log_params(run_id, {"lr": 0.1, "skills": ("add",)})
    registry.log_metrics(run_id, {"before/skill/add": 0.5})
    registry.finish_run(run_id, "FAILED")
    assert registry.start_run("round-1") == registry.start_run("round-1", run_id) == run_id
    registry.log_params(run_id, {"lr": 0.1, "skills": ("add",)})
    registry.log_metrics(run_id, {"before/skill/add": 0.5})
    with pytest.raises(RegistryError, match="log parameters"):
        registry.log_params(run_id, {"lr": 0.2})
    assert registry.start_run("round-2") != run_id
    with pytest.raises(RegistryError, match="does not belong"):
        registry.start_run("round-2", run_id)
    with pytest.raises(RegistryError, match="MLflow refused"):
        registry.start_run("round-3", "0" * 32)
    with pytest.raises(RegistryError, match="round id"):
        registry.start_run("x' OR tags.y = 'z")


def test_everything_about_a_round_is_kept(
    registry: MlflowRegistry,
    store: tuple[str, Path],
    make_items: Callable,
    make_examples: Callable,
    tmp_path: Path,
) -> None:
    run_id = registry.start_run("round-1")
    found = evaluate(
        lambda prompts: list(prompts),
        lambda item, answer: answer.endswith("0"),
        make_items("mix:all", ("add",), 60),
    )
    for _ in range(2):
        registry.log_evaluation(run_id, "before", found)
        registry.log_manifest(run_id, write_dataset(tmp_path / "data.jsonl", make_examples(3)))
        registry.log_verdict(run_id, judge(found, found, ("add",)))
    kept = {path.name for path in store[1].rglob("*.json") if run_id in path.parts}
    assert kept == {"before.json", "manifest.json", "verdict.json"}


def test_versions_are_created_once_and_promoted_and_rolled_back(
    registry: MlflowRegistry, llama: Path, make_adapter: Callable, tmp_path: Path
) -> None:
    registry.register_base(llama)
    second = train(registry, llama, make_adapter(2), "round-2")
    assert train(registry, llama, tmp_path / "adapter-2", "round-2") == second
    assert (second.version, second.kind, second.parent, second.round_id) == (2, "adapter", 1, "round-2")
    assert second.adapter_dir is not None and adapter_sha256(second.adapter_dir) == second.sha256
    assert (registry.alias("champion"), registry.alias("challenger"), registry.alias("previous")) == (
        1,
        2,
        None,
    )
    for _ in range(2):
        registry.promote(2)
        assert (registry.alias("champion"), registry.alias("challenger"), registry.alias("previous")) == (
            2,
            None,
            1,
        )
    registry.create_version(
        "round-2", second.run_id, Lineage(1, second.base_sha256, second.sha256, "data", "promote")
    )
    assert registry.alias("challenger") is None
    train(registry, llama, make_adapter(3), "round-3")
    registry.promote(3)
    for _ in range(2):
        assert registry.rollback(3).version == 2
        assert (registry.alias("champion"), registry.alias("previous")) == (2, 1)
    assert registry.rollback(2).version == 1
    assert registry.alias("previous") is None
    with pytest.raises(RegistryError, match="no predecessor"):
        registry.rollback(1)
    registry.promote(2)
    registry.promote(3)
    for _ in range(2):  # further back than the predecessor
        assert registry.rollback(3, to=1).version == 1
        assert (registry.alias("champion"), registry.alias("previous")) == (1, None)
    with pytest.raises(RegistryError, match="is the champion already"):
        registry.rollback(1, to=1)
    assert [info.version for info in registry.versions()] == [1, 2, 3]


def test_another_adapter_for_a_known_round_is_refused(
    registry: MlflowRegistry, llama: Path, make_adapter: Callable
) -> None:
    registry.register_base(llama)
    train(registry, llama, make_adapter(2), "round-2")
    with pytest.raises(RegistryError, match="round round-2 is version 2 with adapter"):
        train(registry, llama, make_adapter(3), "round-2")


def test_a_download_is_verified(
    registry: MlflowRegistry, llama: Path, make_adapter: Callable, tmp_path: Path
) -> None:
    registry.register_base(llama)
    info = train(registry, llama, make_adapter(2), "round-2")
    target = tmp_path / "student-v2"
    assert registry.download(2, target) == target == registry.download(2, target)
    assert sorted(path.name for path in target.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert info.adapter_dir is not None
    (info.adapter_dir / "adapter_model.safetensors").write_bytes(b"changed")
    with pytest.raises(CorruptAdapter, match="do not serve it"):
        registry.download(2, tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere").exists()


def test_two_processes_may_open_a_student_at_once(store: tuple[str, Path], registry: MlflowRegistry) -> None:
    failures: list[BaseException] = []

    def open_it() -> None:
        try:
            MlflowRegistry(store[0], "both", store[1])
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=open_it) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_names_and_addresses_are_checked(store: tuple[str, Path]) -> None:
    with pytest.raises(RegistryError, match="student name"):
        MlflowRegistry(store[0], "../up", store[1])
    for uri in ("sqlite:///relative.db", "mlruns", "file:///tmp/mlruns"):
        with pytest.raises(RegistryError, match="tracking URI"):
            MlflowRegistry(uri, "student")


def test_a_server_that_is_away_is_a_passing_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(RegistryUnavailable, match="retry with back-off"):
        MlflowRegistry("http://127.0.0.1:9", "student")
