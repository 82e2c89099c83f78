"""Run by test_curate_crash.py: kills a curation in a process of its own at every crash point, runs it again,
and reports.

Usage: crash_rounds.py FOLDER. Processes are forked from this one, so that LangGraph is imported once. One
line of JSON per point.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

from agent.catalog import SkillMap
from agent.decision import SkillTarget
from agent.items import PoolItem
from agent.strategies import plan_targets
from graphs.checkpoints import sqlite_checkpoints
from graphs.curate.graph import build_curate, run_curation
from graphs.curate.plan import CRASH_POINTS, CurateContext, Curation, CurationPlan, ReplaySource
from graphs.testing.scripted import Call, ScriptedTeacher
from streams.crash import CrashPoint, Kill, no_crash
from tests.children import in_child, was_killed

POOL = [
    PoolItem(
        item_id=f"p{at}",
        question=f"pool question {at}",
        solution=f"s{at}",
        answer="a",
        skills=("add" if at % 2 else "gcd",),
    )
    for at in range(30)
]
TARGETS = (
    SkillTarget(skill="gcd", weight=0.5, examples=8, strategy="select"),
    SkillTarget(skill="add", weight=0.5, examples=12, strategy="synthesize"),
)
DATA = plan_targets(TARGETS, SkillMap((item.item_id, item.skills) for item in POOL), 3)
PLAN = CurationPlan(seed=3, data=replace(DATA, answers=2, rewritten=True), per_task=2)
HELD_OUT = ["pool question 4", "held-out question"]
SPECS = (*CRASH_POINTS, "curate.write.start:3", "curate.solve.end:6", "keep")
CALL_S = 0.03  # in the middle of a fan-out: a real teacher takes longer than saving a result does


def attempt(folder: Path, crash: CrashPoint, call_s: float = 0.0) -> None:
    """One process's life: curate the round, logging every call that reaches the teacher."""

    def log(call: Call) -> None:
        time.sleep(call_s)
        os.write(calls, f"{os.getpid()} {call.method} {call.subject}\n".encode())

    def keep(curation: Curation) -> None:
        (folder / "dataset.json").write_text(curation.model_dump_json())
        crash("keep")

    calls = os.open(folder / "calls", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    context = CurateContext(
        ScriptedTeacher(log=log), POOL, HELD_OUT, replay=ReplaySource(original=POOL), crash=crash
    )
    with sqlite_checkpoints(folder / "checkpoints.sqlite") as saver:
        run_curation(build_curate(saver), "round-1", PLAN, context, keep, max_concurrency=1)


def calls_by_process(folder: Path) -> list[list[str]]:
    """The calls of each process, in the order of the processes."""
    lines = (
        [line.split(" ", 1) for line in (folder / "calls").read_text().splitlines()]
        if (folder / "calls").exists()
        else []
    )
    order = list(dict.fromkeys(pid for pid, _ in lines))
    return [[text for pid, text in lines if pid == one] for one in order]


def left_over(folder: Path) -> int:
    """Checkpoints that are still in the file."""
    with sqlite_checkpoints(folder / "checkpoints.sqlite") as saver:
        return sum(1 for _ in saver.list(None))


def main() -> None:
    for spec in ("none", *SPECS):
        folder = Path(sys.argv[1]) / spec.replace(":", "-")
        folder.mkdir()
        killed = False
        if spec != "none":
            status = in_child(
                lambda spec=spec, folder=folder: attempt(folder, Kill(spec), CALL_S if ":" in spec else 0.0)
            )
            killed = was_killed(status)
        before = len(calls_by_process(folder)[0]) if calls_by_process(folder) else 0
        resumed = in_child(lambda folder=folder: attempt(folder, no_crash))
        after = [line for process in calls_by_process(folder)[1 if before else 0 :] for line in process]
        first = calls_by_process(folder)[0] if before else []
        dataset = (folder / "dataset.json").read_text()
        report = {
            "spec": spec,
            "killed": killed,
            "resumed": resumed,
            "first": first,
            "after": after,
        }
        sys.stdout.write(json.dumps({**report, "dataset": dataset, "left_over": left_over(folder)}) + "\n")


if __name__ == "__main__":
    main()
