"""What one worker hands to the next lies in the registry: its own folder may be emptied at any time."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from agent.catalog import SkillCatalog
from agent.decision import Decision, SkillTarget
from agent.items import HeldOutItem, PoolItem
from agent.posterior import SkillEstimate
from graphs.testing.scripted import ScriptedTeacher
from loop.config import load
from loop.tasks.task import Task
from loop.wiring import set_up_student
from loop.workers.curate import CurateWorker
from loop.workers.decide import changed
from loop.workers.deploy import DeployWorker
from loop.workers.judge import JudgeWorker
from loop.workers.messages import Evaluating, Message
from loop.workers.record import LoopRound, Opened, RoundParts, open_rounds
from loop.workers.services import Services
from loop.workers.train import TrainWorker
from serving.adapter_files import adapter_sha256
from serving.scripted_engine import ScriptedEngine
from streams.clock import HandClock
from streams.crash import Crashed, Raise, no_crash
from streams.files import read_objects
from streams.state.rounds import Round
from streams.state.store import StateStore
from training.testing.folder_registry import FolderRegistry
from training.trainer import CurvePoint, Progress, TrainedAdapter, TrainingJob, unwatched

NOW = datetime(2026, 1, 1, tzinfo=UTC)
POOL = tuple(
    PoolItem(item_id=f"p{n}", question=f"add {n}", solution=f"sum {n}", answer=str(n), skills=("add",))
    for n in range(20)
)
HELD_OUT = tuple(
    HeldOutItem(item_id=f"h{n}", question=f"held {n}", answer=str(n), skills=("add",), stratum="skill:add")
    for n in range(60)
)
WORKERS = {"curated": CurateWorker, "trained": TrainWorker, "judged": JudgeWorker, "promoted": DeployWorker}


class WritingTrainer:
    """Writes an adapter that tells how many examples it saw."""

    def train(self, job: TrainingJob, on_progress: Progress = unwatched) -> TrainedAdapter:
        adapter = job.out_dir / "adapter"
        adapter.mkdir(parents=True, exist_ok=True)
        (adapter / "adapter_config.json").write_text('{"peft_type": "LORA"}')
        save_file({"seen": np.full(3, job.seed)}, adapter / "adapter_model.safetensors")
        curve = tuple(CurvePoint(step, 1 / step, 1e-3, 1.0, 9.0, step) for step in (1, 2))
        left_out = (job.examples[0].example_id,)
        return TrainedAdapter(adapter, adapter_sha256(adapter), 2, 1.0, 9, 0.5, left_out, curve)


class Hosts:
    """One student whose workers meet in a store and a registry only."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.told, self.opened = folder, list[Message](), 0
        self.registry = FolderRegistry(folder / "artifacts")
        self.store = StateStore(f"sqlite:///{folder / 'state.db'}")
        self.rounds = open_rounds(self.store)
        set_up_student(self.services())

    def services(self, crash: Callable[[str], None] = no_crash) -> Services:
        """Those of a process that has just started, in an empty folder."""
        root = self.folder / "host"
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        known = {item.question: at for items in (HELD_OUT, POOL) for at, item in enumerate(items)}

        def answer(prompt: str, version: int, sample: int) -> str:
            level = version - 1 if version else self.opened  # each round teaches thirty more questions
            return str(known[prompt]) if known[prompt] < 30 * level else "no"

        catalog, base = SkillCatalog.of(("add", "adds")), Path("base")
        return Services(
            config=load(None),
            root=root,
            store=self.store,
            rounds=self.rounds,
            task=Task(catalog, POOL, HELD_OUT, lambda want, got: want == got, ScriptedTeacher(), base),
            engine=ScriptedEngine(answer),
            registry=self.registry,
            trainer=WritingTrainer(),
            clock=HandClock(NOW),
            crash=crash,
            owner="a host",
            listen=self.told.append,
        )

    def open(self, number: int, champion: int) -> None:
        target = SkillTarget(skill="add", weight=1.0, examples=4, strategy="select")
        decision = Decision(kind="select", skills=(target,), examples=4, steps=2, reasons=("test",))
        counts = {"needed": 9.0, "missing": 9.0, "raw": (9, 9), "mean": 0.9, "low": 0.8, "high": 1.0}
        seen = (SkillEstimate(skill="add", share=1.0, priority=0.9, **counts),)
        opened = Opened(champion=champion, at=NOW, answers=0, profile=seen)
        record = RoundParts(decision=decision, opened=opened)
        round_ = Round(f"demo-r00{number}", "demo", number, "planned", None, record)
        assert self.rounds.open(round_, changed(round_, "planned", {}))
        self.opened = number

    def step(self, state: str, crash: Callable[[str], None] = no_crash) -> LoopRound:
        """One step of the newest round, by a process of its own."""
        assert WORKERS[state](self.services(crash)).step()
        round_ = self.rounds.list("demo")[-1]
        assert round_.state == state, (round_.record.ended, round_.record.judged)
        return round_


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    made = Hosts(tmp_path)
    yield made
    made.store.close()


def test_two_rounds_in_folders_that_are_emptied_after_every_step(hosts: Hosts) -> None:
    for number in (1, 2):
        hosts.open(number, champion=number)
        ended = [hosts.step(state) for state in WORKERS][-1]
        judged, run = ended.record.need_judged(), hosts.registry.runs[f"run-{ended.round_id}"]
        assert judged.version == number + 1 == hosts.registry.champion().version
        assert run.status == "FINISHED" and run.data is not None and run.data.examples == run_examples(ended)
        assert run.metrics["train/loss", 1] == 1.0 and run.note.startswith(f"Round {ended.round_id}")
    assert [told.who for told in hosts.told if isinstance(told, Evaluating)] == [
        "version 1",
        "the challenger of demo-r001",
        "the challenger of demo-r002",
    ], "nothing is measured twice"
    taught = [set(ids(hosts, round_)) for round_ in hosts.rounds.list("demo")]
    assert taught[1] != taught[0], "the second round knows what the first has taught"
    assert len(hosts.registry.runs) == 3, "the base's, and one for each round"


def run_examples(round_: LoopRound) -> int:
    return round_.record.need_curated().manifest.examples - 1


def ids(hosts: Hosts, round_: LoopRound) -> list[str]:
    return [example.example_id for example in hosts.services().examples_of(round_)]


@pytest.mark.parametrize("point", ["curate.after-upload", "train.after-upload", "judge.after-run"])
def test_a_death_between_storing_and_moving_the_round_stores_nothing_twice(hosts: Hosts, point: str) -> None:
    hosts.open(1, champion=1)
    for state in WORKERS:
        if point.startswith({"curated": "curate", "trained": "train", "judged": "judge"}.get(state, "-")):
            with pytest.raises(Crashed):
                hosts.step(state, Raise(point))
        hosts.step(state)
    stored = [path.name for path in (hosts.folder / "artifacts/run-demo-r001").rglob("*") if path.is_file()]
    assert len(stored) == len(set(stored)) == 8 and len(hosts.registry.versions()) == 2
    (train,) = (hosts.folder / "artifacts/run-demo-r001/data").glob("train-*.jsonl")
    assert all(row.keys() == {"example_id", "skills", "prompt", "completion"} for row in read_objects(train))


def test_a_round_that_fails_closes_its_run(hosts: Hosts) -> None:
    hosts.open(1, champion=1)
    hosts.step("curated")
    services = hosts.services()
    asked = zip(HELD_OUT, POOL, strict=False)
    leaked = tuple(item.model_copy(update={"question": taught.question}) for item, taught in asked)
    task = replace(services.task, held_out=leaked, pool=())
    assert TrainWorker(replace(services, task=task)).step()
    assert hosts.rounds.list("demo")[-1].state == "failed"
    assert hosts.registry.runs["run-demo-r001"].status == "FAILED"
