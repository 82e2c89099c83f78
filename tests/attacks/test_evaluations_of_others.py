"""Attacks: an evaluation that is kept for a version is taken for that of another student, or of another
grader."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent.catalog import SkillCatalog
from agent.items import HeldOutItem
from graphs.testing.scripted import ScriptedTeacher
from loop.config import load
from loop.tasks.task import Task
from loop.workers.judge import Measure
from loop.workers.services import Services
from serving.scripted_engine import ScriptedEngine
from streams.clock import SystemClock
from streams.crash import no_crash
from streams.state.store import StateStore

ITEMS = tuple(
    HeldOutItem(item_id=f"h{n}", question=f"what is {n}", answer="1", skills=("add",), stratum="add")
    for n in range(20)
)


def accuracy(tmp_path: Path, base: str, answer: str, grade: Any, grader: str = "") -> float:
    """What the gate takes for the accuracy of version 1."""
    engine = ScriptedEngine(lambda prompt, version, sample: answer)
    engine.load(1, None)
    catalog = SkillCatalog.of(("add", ""))
    task = Task(catalog, (), ITEMS, grade, ScriptedTeacher(), Path("base"), grader=grader)
    services = Services(
        config=load(None),
        root=tmp_path,
        store=StateStore(f"sqlite:///{tmp_path}/state.db"),
        rounds=None,  # type: ignore[arg-type]
        task=task,
        engine=engine,
        registry=SimpleNamespace(champion=lambda: SimpleNamespace(base_sha256=base)),  # type: ignore[arg-type]
        trainer=None,  # type: ignore[arg-type]
        clock=SystemClock(),
        crash=no_crash,
        owner="test",
    )
    kept = Measure(services, 1, None, "version 1").on(ITEMS, services.evaluation_file(1))
    services.store.close()
    right = kept.evaluation.accuracy_by_skill()
    return right.get("add", -1.0)


def exactly(want: str, got: str) -> bool:
    return want == got


def test_a_second_student_in_the_same_folder_is_measured_itself(tmp_path: Path) -> None:
    """It was judged against the evaluation of the first one, and promoted."""
    assert accuracy(tmp_path, "one", "1", exactly) == 1.0
    assert accuracy(tmp_path, "two", "2", exactly) == 0.0


def test_another_grader_grades_anew(tmp_path: Path) -> None:
    assert accuracy(tmp_path, "one", "1", exactly, "exact") == 1.0
    assert accuracy(tmp_path, "one", "1", lambda want, got: want != got, "opposite") == 0.0


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_an_undecided_answer_is_not_a_wrong_one(tmp_path: Path, share: float) -> None:
    """`bool(None)` was wrong: the champion measured 0 %, and an identical challenger was promoted."""
    undecided = {item.answer for item in ITEMS} if share else set()
    graded = accuracy(tmp_path, "one", "1", lambda want, got: None if want in undecided else want == got)
    assert graded == (-1.0 if share else 1.0)
