"""Run by test_chat_crash.py: kills a curation with the chat teacher at every node, runs it again, and counts
calls at the server.

Usage: crash_chat_rounds.py FOLDER. The scripted server runs in a process of its own; every life of the
curation is forked from this process, so that LangGraph and langchain-openai are imported once. One line of
JSON per crash point.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import httpx

from agent.budget import Price
from agent.catalog import SkillMap
from agent.decision import SkillTarget
from agent.items import PoolItem
from agent.strategies import plan_targets
from graphs.chat.cache import SqliteReplies
from graphs.chat.settings import ChatSettings
from graphs.chat.teacher import ChatTeacher
from graphs.checkpoints import sqlite_checkpoints
from graphs.curate.graph import build_curate, run_curation
from graphs.curate.plan import CRASH_POINTS, CurateContext, Curation, CurationPlan, ReplaySource
from graphs.testing.server import teacher_process
from streams.crash import CrashPoint, Kill, no_crash
from tests.children import in_child, was_killed

POOL = [
    PoolItem(
        item_id=f"p{at}",
        question=f"What is {at} + 7?",
        solution=f"{at + 7}",
        answer=f"{at + 7}",
        skills=("add" if at % 2 else "gcd",),
    )
    for at in range(12)
]
TARGETS = (
    SkillTarget(skill="gcd", weight=0.5, examples=3, strategy="select"),
    SkillTarget(skill="add", weight=0.5, examples=4, strategy="synthesize"),
)
DATA = plan_targets(TARGETS, SkillMap((item.item_id, item.skills) for item in POOL), 3)
PLAN = CurationPlan(seed=3, data=replace(DATA, rewritten=True))
# The end of a node is the worst moment: all its calls are made, and nothing of it is in the graph's state
# yet.
ENDS = tuple(point for point in CRASH_POINTS if point.endswith(".end"))
SPECS = (*ENDS, "curate.write.start", "curate.write.end:2", "curate.solve.start:3", "keep")


def attempt(folder: Path, base_url: str, crash: CrashPoint) -> None:
    """One process's life: curate the round with the cache and the checkpoints of the folder."""

    def keep(curation: Curation) -> None:
        (folder / "dataset.json").write_text(curation.model_dump_json())
        crash("keep")

    settings = ChatSettings(
        base_url=base_url, model="teacher", price=Price(prompt_usd_per_mtok=1.0, completion_usd_per_mtok=2.0)
    )
    with (
        SqliteReplies(folder / "replies.sqlite") as cache,
        sqlite_checkpoints(folder / "checkpoints.sqlite") as saver,
    ):
        with ChatTeacher.connect(settings, cache) as teacher:
            context = CurateContext(
                teacher.for_round("round-1"), POOL, [], replay=ReplaySource(original=POOL), crash=crash
            )
            run_curation(build_curate(saver), "round-1", PLAN, context, keep, max_concurrency=1)


def calls(base_url: str) -> int:
    """How many requests the server has answered so far."""
    return sum(httpx.get(f"{base_url.removesuffix('/v1')}/calls").json().values())


def main() -> None:
    with teacher_process("--port", "0", "--brain", "sensible") as base_url:
        for spec in ("none", *SPECS):
            folder = Path(sys.argv[1]) / spec.replace(":", "-")
            folder.mkdir()
            begin = calls(base_url)
            status = in_child(
                lambda folder=folder, spec=spec: attempt(
                    folder, base_url, no_crash if spec == "none" else Kill(spec)
                )
            )
            first = calls(base_url) - begin
            resumed = (
                0 if spec == "none" else in_child(lambda folder=folder: attempt(folder, base_url, no_crash))
            )
            report = {
                "spec": spec,
                "killed": was_killed(status),
                "resumed": resumed,
                "first": first,
                "calls": calls(base_url) - begin,
            }
            sys.stdout.write(json.dumps({**report, "dataset": (folder / "dataset.json").read_text()}) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
