"""The registry on a real MLflow store (SQLite): every step can be repeated, aliases are right after a crash
in between."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import save_file

from serving.adapter_files import CorruptAdapter, adapter_sha256
from training.adapters import base_sha256
from training.errors import ArtifactError, RegistryError, RegistryUnavailable
from training.evaluate import evaluate
from training.gate import judge
from training.registry import MlflowRegistry
from training.testing.folder_registry import FolderRegistry
from training.trainer import CurvePoint
from training.versions import Lineage, Registry, TrainedData, VersionInfo

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


def test_a_rounds_other_runs_are_dropped(registry: MlflowRegistry, store: tuple[str, Path]) -> None:
    kept, neighbour = registry.start_run("round-1"), registry.start_run("round-2")
    client = MlflowClient(store[0])
    experiment = client.get_run(kept).info.experiment_id
    other = client.create_run(experiment, tags={"round_id": "round-1"}).info.run_id
    registry.drop_other_runs("round-1", kept)
    stages = [client.get_run(run).info.lifecycle_stage for run in (kept, neighbour, other)]
    assert stages == ["active", "active", "deleted"]


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
    tmp_path: Path,
) -> None:
    run_id = registry.start_run("round-1")
    data = tmp_path / "train.jsonl"
    data.write_text('{"prompt": "a", "completion": "b"}\n')
    curve = [CurvePoint(step, 1 / step, 1e-3, 2.0, 900.0, 1_000 * step) for step in (10, 20, 30)]
    found = evaluate(
        lambda prompts: list(prompts),
        lambda item, answer: answer.endswith("0"),
        make_items("mix:all", ("add",), 60),
    )
    for _ in range(2):
        registry.log_evaluation(run_id, "before", found)
        registry.log_verdict(run_id, judge(found, found, ("add",)))
        registry.log_text(run_id, "<p>fine", "gate/report.html")
        sha256 = registry.put_file(run_id, data, "data/train.jsonl")
        registry.log_data(run_id, TrainedData("round-1", "data/train.jsonl", sha256, 1))
        registry.describe_run(run_id, "**taught** add", {"skills": "add"})
        registry.log_curve(run_id, curve)
    kept = {path.name for path in store[1].rglob("*.*") if run_id in path.parts and path.is_file()}
    assert kept == {"verdict.json", "report.html", f"train-{sha256[:12]}.jsonl"}
    client = MlflowClient(store[0])
    assert [(m.step, m.value, m.timestamp) for m in client.get_metric_history(run_id, "train/loss")] == [
        (point.step, point.loss, point.at_ms) for point in curve
    ]
    run = client.get_run(run_id)
    assert {"train/learning_rate", "train/grad_norm", "train/tokens_per_s"} < set(run.data.metrics)
    assert (run.data.tags["mlflow.note.content"], run.data.tags["skills"]) == ("**taught** add", "add")
    (logged,) = run.inputs.dataset_inputs
    assert (logged.dataset.name, logged.dataset.digest) == ("round-1", sha256[:32])
    source = mlflow.data.get_source(logged)
    assert Path(source.load()).read_bytes() == data.read_bytes()


@pytest.mark.parametrize("kind", ["mlflow", "fake"])
def test_a_stored_file_is_fetched_when_it_is_missing_and_never_replaced(
    kind: str, store: tuple[str, Path], tmp_path: Path
) -> None:
    registry: Registry = (
        MlflowRegistry(store[0], "files", store[1]) if kind == "mlflow" else FolderRegistry(store[1] / "fake")
    )
    run_id, mine, copy = registry.start_run("round-1"), tmp_path / "mine.json", tmp_path / "other" / "copy"
    mine.write_text("first")
    first = registry.put_file(run_id, mine, "evaluation/after.json")
    mine.write_text("of a worker that was overtaken")
    second = registry.put_file(run_id, mine, "evaluation/after.json")
    for _ in range(2):
        assert registry.get_file(run_id, copy, "evaluation/after.json", first).read_text() == "first"
    copy.write_text("damaged")
    assert registry.get_file(run_id, copy, "evaluation/after.json", first).read_text() == "first"
    copy.unlink()
    for kept in store[1].rglob(f"after-{first[:12]}.json"):
        kept.write_text("tampered")
    with pytest.raises(ArtifactError, match=f"not {first}"):
        registry.get_file(run_id, copy, "evaluation/after.json", first)
    with pytest.raises(ArtifactError, match="has no evaluation/before"):
        registry.get_file(run_id, copy, "evaluation/before.json", second)
    assert not list(copy.parent.iterdir())


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


def test_workers_may_download_at_once(
    registry: MlflowRegistry, llama: Path, make_adapter: Callable, tmp_path: Path
) -> None:
    registry.register_base(llama)
    train(registry, llama, make_adapter(2), "round-2")
    target, together, got = tmp_path / "shared" / "student-v2", threading.Barrier(6), []

    def fetch() -> None:
        together.wait()
        got.append(registry.download(2, target))

    threads = [threading.Thread(target=fetch) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [target] * 6 and adapter_sha256(target) == registry.version(2).sha256
    assert [path.name for path in target.parent.iterdir()] == [target.name]


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
