"""The online loop on files of questions, with a language model behind HTTP as the teacher: here the demo's
teacher speaks for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from rich.console import Console

from agent.budget import LedgerEntry
from agent.items import HeldOutItem
from agent.profile import ALL
from graphs.testing.brain import ChatRequest
from graphs.testing.server import TeacherServer
from loop.backends import open_log, open_store
from loop.cli.look import rebuild_profile
from loop.config import Config, ConfigError, load
from loop.demo.stream import START, DemoStream
from loop.doors import open_task
from loop.embedded import Embedded
from loop.tasks.records import CatalogRow, LabelRow
from loop.tasks.world.checker import grade
from loop.tasks.world.task import items_of, pool_sizes
from loop.tasks.world.teacher import SymbolicTeacher
from loop.tasks.world.world import DESCRIPTIONS, SKILLS, pool
from loop.wiring import open_services, set_up_student
from loop.workers.record import LoopRound
from loop.workers.services import Ports
from streams.clock import HandClock
from streams.files import DataError
from streams.state.ledger import entries

HERE = Path(__file__).parents[1]
SYMBOLIC = SymbolicTeacher()


class SymbolicBrain:
    """The demo's teacher behind the API of a language model."""

    def reply(self, request: ChatRequest) -> str:
        says: Callable[[ChatRequest], dict[str, Any]] = getattr(self, f"_{request.purpose}")
        return json.dumps(says(request))

    def _label(self, request: ChatRequest) -> dict[str, Any]:
        return {"skills": list(SYMBOLIC.label(request.data["question"], request.listed("skills")).skills)}

    def _diagnose(self, request: ChatRequest) -> dict[str, Any]:
        skills = request.listed("missing")
        found = SYMBOLIC.diagnose(request.data["question"], request.data["answer"], skills, skills)
        return {"verdict": found.verdict, "evidence": found.evidence, "missing": list(found.missing)}


def write_rows(path: Path, rows: Sequence[BaseModel | dict[str, Any]]) -> None:
    values = [row.model_dump(mode="json") if isinstance(row, BaseModel) else row for row in rows]
    path.write_text("".join(json.dumps(value) + "\n" for value in values))


CONFIG = """
[task]
kind = "files"
catalog = "catalog.jsonl"
pool = "pool.jsonl"
labels = ["labels.jsonl"]
held_out = ["held_out.jsonl"]
[teacher]
kind = "chat"
[teacher.chat]
base_url = "{base_url}"
model = "scripted"
price = {{ prompt_usd_per_mtok = 1.0, completion_usd_per_mtok = 2.0 }}
"""


@pytest.fixture
def config_file(tmp_path: Path) -> Iterator[Path]:
    """The demo's questions as files, and a server for a teacher."""
    settings = load(HERE / "small.toml")
    write_rows(
        tmp_path / "catalog.jsonl",
        [CatalogRow(skill=name, description=DESCRIPTIONS[name]) for name in SKILLS],
    )
    items = pool(settings.seed, pool_sizes(settings))
    kept = {"question", "solution", "answer"}
    write_rows(
        tmp_path / "pool.jsonl", [{"id": item.item_id, **item.model_dump(include=kept)} for item in items]
    )
    labelled = {item.item_id: SYMBOLIC.label(item.question, SKILLS).skills for item in items}
    labels = [
        LabelRow(question_id=one, part="pool", skills=skills, source="teacher")
        for one, skills in labelled.items()
    ]
    write_rows(tmp_path / "labels.jsonl", labels)
    kept = {"question", "answer", "skills"}
    held_out = items_of("gate", settings.demo)
    write_rows(
        tmp_path / "held_out.jsonl",
        [{"id": item.item_id, **item.model_dump(include=kept)} for item in held_out],
    )
    with TeacherServer(brain=SymbolicBrain()) as server:
        path = tmp_path / "online.toml"
        path.write_text(CONFIG.format(base_url=server.base_url) + (HERE / "small.toml").read_text())
        yield path


@dataclass(frozen=True)
class Ran:
    """What a run came to."""

    first: LoopRound
    answers: int
    ledger: list[LedgerEntry]
    reserved: dict[str, HeldOutItem]


def run_stream(config: Config, root: Path) -> Ran:
    """Serve the demo's stream of questions."""
    root.mkdir()
    clock = HandClock(START)
    store = open_store(config, root)
    # Only the demo's checker finds the final answer in its student's lines.
    task = replace(open_task(config, root, store), grade=grade)
    with (
        open_services(config, root, Ports(clock=clock, task=task, store=store)) as services,
        open_log(config, root) as log,
    ):
        set_up_student(services)
        stream, embedded = DemoStream(services, log, clock), Embedded(services, log)
        while stream.step():
            embedded.settle()
        counted = sum(needed for (_, _, skill, _), (needed, _) in store.buckets().items() if skill == ALL)
        reserved = {known.item.item_id: known.item for known in services.held_out.reserved()}
        first = services.rounds.list(services.student)[0]
        return Ran(first, counted, entries(store, services.student), reserved)


@pytest.mark.slow
def test_a_teacher_behind_http_finds_and_teaches_what_the_same_teacher_in_process_does(
    config_file: Path, tmp_path: Path
) -> None:
    """Up to the round's decision; what comes after depends on the gate's items, which are grouped
    otherwise."""
    short = {"examples_per_skill": 40, "steps_per_skill": 4, "min_steps": 4}
    overrides = {"demo": {"questions": 200}, "policy": {"min_pool": 20, **short}}
    config = load(config_file, overrides=overrides)
    ran = run_stream(config, tmp_path / "run")
    direct = run_stream(load(HERE / "small.toml", overrides=overrides), tmp_path / "direct")
    assert (
        ran.first.record.decision == direct.first.record.decision
        and ran.first.record.opened.profile == direct.first.record.opened.profile
    )
    assert ran.first.state in ("promoted", "rejected") and ran.answers == direct.answers == 200
    assert rebuild_profile(config, tmp_path / "run", Console(quiet=True))
    # Traffic adds to the one held-out file, and to the strata of single skills.
    assert direct.reserved.keys() <= ran.reserved.keys() and len(direct.reserved) > 5
    assert {item.stratum for item in ran.reserved.values()} == {"held_out"}
    assert {item.stratum.split(":")[0] for item in direct.reserved.values()} == {"skill"}
    paid = [entry.usage for entry in ran.ledger if entry.activity in ("label", "diagnose")]
    assert paid and all(usage.calls == 1 and usage.usd > 0 for usage in paid)


def test_wrong_settings_are_named(config_file: Path, tmp_path: Path) -> None:
    text = config_file.read_text()
    store = open_store(load(None), tmp_path)
    for changed, message in (
        (text.replace('labels = ["labels.jsonl"]', ""), "name its labels in task.labels"),
        (text.replace('pool = "pool.jsonl"', ""), "kind = 'files' needs pool"),
        (text.replace('kind = "files"', 'kind = "demo"'), "the demo's world has its symbolic teacher"),
    ):
        config_file.write_text(changed)
        with pytest.raises(ConfigError, match=message):
            open_task(load(config_file), tmp_path, store)
    config_file.write_text(text.replace("catalog.jsonl", "labels.jsonl"))
    with pytest.raises(DataError, match=r"labels\.jsonl"):
        open_task(load(config_file), tmp_path, store)
    store.close()
