"""One method: what `skillloop stat` makes of a file, the curate worker makes of the same answers in the
log."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from agent.catalog import SkillCatalog
from agent.decision import Decision, SkillTarget
from agent.items import HeldOutItem
from loop.config import load
from loop.offline import pipeline
from loop.offline.bench import Bench
from loop.offline.config import load_stat
from loop.offline.opening import open_bench
from loop.offline.records import DatasetRow, DiagnosisRow
from loop.tasks.grading import grade_text
from loop.tasks.task import Task
from loop.workers.curate import CurateWorker, round_seed
from loop.workers.decide import changed
from loop.workers.record import Opened, RoundParts, open_rounds
from loop.workers.services import Services
from serving.scripted_engine import ScriptedEngine
from streams.clock import HandClock
from streams.codec import encode
from streams.crash import no_crash
from streams.events import Diagnosed, StudentOutput
from streams.memory_log import MemoryLog
from streams.state.rounds import Round
from streams.state.store import StateStore
from training.mix import read_dataset
from training.testing.folder_registry import FolderRegistry

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ROUND = Round("demo-r001", "demo", 1, "planned", None, None)
Files = Callable[..., Path]


def as_log(bench: Bench) -> MemoryLog:
    """The run's answers and diagnoses as the loop would have recorded them."""
    log = MemoryLog()
    for number, row in enumerate(bench.folder.rows("diagnoses", DiagnosisRow)):
        common = {"occurred_at": NOW + timedelta(seconds=number), "student": "demo", "student_version": 1}
        question = bench.data.by_id[row.question_id].question
        output = StudentOutput(
            event_id=f"e{number}", question_id=row.question_id, question=question, answer="x", **common
        )
        known = {"verdict": row.verdict, "needed": row.needed, "missing": row.missing, "bucket": 0}
        diagnosed = Diagnosed(
            event_id=f"d{number}",
            causation_id=f"e{number}",
            decided_by="teacher",
            teacher="t",
            **known,
            **common,
        )
        log.append([encode(output), encode(diagnosed)])
    return log


def online(bench: Bench, root: Path, log: MemoryLog) -> dict[str, Any]:
    """The data set of the curate worker for the run's pool, teacher and strategy, by example."""
    root.mkdir()
    store, items, strategy = (
        StateStore(f"sqlite:///{root / 'state.db'}"),
        bench.items(),
        bench.config.strategy,
    )
    asked = {question.question for question in bench.data.validation}
    untouchable = [
        HeldOutItem(item_id=f"h{at}", question=text, answer="1", skills=("sum",), stratum="s")
        for at, text in enumerate(bench.data.untouchable)
        if text not in asked  # the loop plans from no answer to a held-out question
    ]
    task = Task(
        SkillCatalog.of(*((row.skill, row.description) for row in bench.catalog_rows())),
        tuple(item for item in items.values() if item.item_id != "leaked"),
        tuple(untouchable),
        lambda expected, answer: grade_text("", expected, answer),
        bench.teacher,
        root,
    )
    settings = {"strategy": strategy.name, "replay": {"share": 0.0}}
    numbers = strategy.model_dump(exclude={"name"})
    engine = ScriptedEngine(lambda prompt, version, sample: "?")
    engine.load(1, None)
    services = Services(
        config=load(None, overrides={"curate": settings, "strategy": numbers}),
        root=root,
        store=store,
        rounds=open_rounds(store),
        task=task,
        engine=engine,
        registry=FolderRegistry(root / "store"),
        trainer=None,  # type: ignore[arg-type]
        clock=HandClock(NOW),
        crash=no_crash,
        owner="test",
    )
    share = 1 / len(task.catalog.names)
    targets = tuple(
        SkillTarget(skill=skill, weight=share, examples=strategy.pairs, strategy="select")
        for skill in task.catalog.names
    )
    decision = Decision(kind="select", skills=targets, examples=strategy.pairs, steps=1, reasons=("test",))
    planned = replace(
        ROUND, record=RoundParts(decision=decision, opened=Opened(champion=1, at=NOW, answers=0))
    )
    services.rounds.open(planned, changed(planned, "planned", {}))
    assert CurateWorker(services, lambda: nullcontext(log)).step()
    made = read_dataset(services.round_dir(ROUND.round_id) / "dataset.jsonl")
    return {example.example_id: example for example in made}


@pytest.mark.parametrize("strategy", ["stat-sel", "stat-syn", "mix", "embed-sel"])
def test_one_plan_gives_one_data_set_online_and_offline(
    make_files: Files, tmp_path: Path, strategy: Any
) -> None:
    config = make_files()
    config.write_text(f"seed = {round_seed(0, ROUND)}\n" + config.read_text())
    # The loop refuses a pool with a held-out question; files are only sifted.
    with open_bench(load_stat(config), tmp_path / "run", strategy) as bench:
        pipeline.run_stages(bench, "dataset")
        rows = bench.folder.rows(bench.named("dataset"), DatasetRow)
        made = online(bench, tmp_path / "online", as_log(bench))
    assert rows and {row.id for row in rows} == set(made)
    for row in rows:
        example = made[row.id]
        where = example.provenance
        assert (row.messages[0].content, row.messages[1].content) == (example.prompt, example.completion)
        assert (row.skills, row.origin.part, row.origin.skill) == (example.skills, where.part, where.skill)
        assert (row.origin.cause, row.origin.source_ids) == (where.cause, where.source_ids)
        assert (row.origin.teacher, row.origin.usage) == (where.teacher, where.usage)
