"""One question, one answer: the online loop and `skillloop stat` say the same of the same 200 answers of a
student, with the same teacher."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from agent.catalog import SkillCatalog
from agent.items import HeldOutItem
from graphs.teacher import Diagnosis
from graphs.testing.scripted import ScriptedTeacher
from loop.config import load
from loop.offline import pipeline
from loop.offline.config import load_stat
from loop.offline.opening import open_bench
from loop.offline.records import AssessedRow, DiagnosisRow, ProfileRow
from loop.tasks.grading import grade_text
from loop.tasks.task import Task
from loop.wiring import open_services
from loop.workers.monitor import MonitorWorker
from loop.workers.services import Ports
from serving.scripted_engine import ScriptedEngine
from streams.clock import HandClock
from streams.codec import Codec, encode
from streams.events import Diagnosed, StudentOutput
from streams.local_log import LocalLog

NOW = datetime(2026, 11, 1, tzinfo=UTC)
SKILLS = ("add", "choose", "factor", "gcd", "mean", "order")
QUESTIONS = 200
SAMPLES = 3


def question(number: int) -> str:
    return f"Question {number}: what is {number} and {number * 7}?"


def samples(number: int) -> list[str]:
    """Three answers of the student; every third first one is right, and some never agree."""
    right, other = f"\\boxed{{{number}}}", "\\boxed{none}"
    texts = [right, other, right] if number % 3 == 0 else [other, right, other]
    return [f"Well, {number}. {text}" for text in (texts if number % 5 else [right, other, "I do not know."])]


def labels(number: int) -> tuple[str, ...]:
    """Up to six skills, some twice; now and then one that the catalog does not have, or none."""
    if number % 11 == 0:
        return ()
    named = tuple(SKILLS[(number + at * at) % len(SKILLS)] for at in range(number % 4 + 1))
    return (*named, "made up") if number % 7 == 0 else SKILLS if number % 13 == 0 else named


def diagnosis(number: int) -> Diagnosis:
    """What a fallible teacher says: skills off the list and invented evidence too."""
    if number % 17 == 0:
        return Diagnosis(verdict="abstained")
    if number % 19 == 0:
        return Diagnosis(verdict="correct", missing=("add",))
    missing = ("made up", SKILLS[number % len(SKILLS)], SKILLS[(number + 1) % len(SKILLS)])
    return Diagnosis(
        verdict="incorrect", missing=missing, evidence="Well" if number % 2 else "the student is excellent"
    )


def gold(number: int) -> str | None:
    return None if number % 4 == 0 else str(number)


def teacher() -> ScriptedTeacher:
    return ScriptedTeacher(
        labels={question(number): labels(number) for number in range(QUESTIONS)},
        diagnoses={(question(number), samples(number)[0]): diagnosis(number) for number in range(QUESTIONS)},
        broken=frozenset({samples(101)[0], samples(25)[0]}),
    )


@dataclass(frozen=True)
class Said:
    """What was said of the student's answers: by question, and how often each skill was missing."""

    of: Mapping[str, tuple[Any, ...]]
    missing: Mapping[str, int]


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def offline(folder: Path, order: Sequence[str], constrain: bool) -> Said:
    """`skillloop stat` on the answers, as far as the profile."""
    write(folder / "catalog.jsonl", [{"skill": skill} for skill in SKILLS])
    write(folder / "train.jsonl", [{"id": "t0", "question": "Pool?", "solution": "s", "skills": ["add"]}])
    asked = [
        {"id": f"q{number}", "question": question(number), "answer": gold(number) or ""}
        for number in range(QUESTIONS)
    ]
    write(folder / "validation.jsonl", asked)
    answers = [{"question_id": f"q{number}", "responses": samples(number)} for number in range(QUESTIONS)]
    write(folder / "answers.jsonl", answers)
    (folder / "stat.toml").write_text(
        'answers = "answers.jsonl"\n[data]\ntrain = "train.jsonl"\nvalidation = "validation.jsonl"\n'
        '[catalog]\nsource = "file"\nfile = "catalog.jsonl"\nlabels = "teacher"\n'
        f'[filters]\ngrade = "text"\norder = {json.dumps(order)}\nconstrain = {json.dumps(constrain)}\n'
    )
    with open_bench(load_stat(folder / "stat.toml"), folder / "run") as opened:
        bench = replace(opened, teacher=teacher())
        pipeline.run_stages(bench, "profile")
        needed = bench.labels()
        diagnosed = {row.question_id: row for row in bench.folder.rows("diagnoses", DiagnosisRow)}
        of = {
            row.question_id: _offline_row(row, diagnosed.get(row.question_id), needed[row.question_id])
            for row in bench.folder.rows("assessed", AssessedRow)
        }
        profile = bench.folder.rows("profile", ProfileRow)
        return Said(of, {row.skill: row.missing for row in profile if row.missing})


def _offline_row(row: AssessedRow, found: DiagnosisRow | None, needed: tuple[str, ...]) -> tuple[Any, ...]:
    if row.error or (found and found.error):
        return ("failed",)
    if found is not None and found.verdict == "incorrect":
        return ("incorrect", row.decided_by, found.needed, found.missing, found.evidence, found.discarded)
    return ("correct" if row.verdict == "correct" else "abstained", row.decided_by, needed, (), "", 0)


def online(folder: Path, order: Sequence[str], constrain: bool) -> Said:
    """The monitor worker on the same answers in a local log."""
    settings = {"filters": list(order), "samples": SAMPLES, "constrain": constrain}
    config = load(None, overrides={"monitor": settings})
    known = {question(number): samples(number) for number in range(QUESTIONS)}
    engine = ScriptedEngine(lambda prompt, version, sample: known[prompt][sample])
    engine.load(1, None)
    held_out = HeldOutItem(item_id="h", question="held out", answer="a", skills=("add",), stratum="s")
    task = Task(
        SkillCatalog.of(*((skill, "") for skill in SKILLS)),
        (),
        (held_out,),
        lambda expected, answer: grade_text("", expected, answer),
        teacher(),
        folder,
    )
    absent: Any = object()
    ports = Ports(task=task, engine=engine, registry=absent, trainer=absent, clock=HandClock(NOW))
    with open_services(config, folder, ports) as services, LocalLog(folder / "log.db") as log:
        log.append([encode(output(number)) for number in range(QUESTIONS)])
        worker = MonitorWorker(services, log)
        while worker.step():
            pass
        events = [Codec().decode(record) for record in log.read("diagnoses")]
        of = {
            event.causation_id or "": _online_row(event) for event in events if isinstance(event, Diagnosed)
        }
        letters = {dict(record.headers)["ce_id"] for record in log.read("student-outputs.dlq")}
        buckets = services.store.buckets("demo")
        missing = {
            skill: wrong for (_, _, skill, _), (_, wrong) in buckets.items() if wrong and skill in SKILLS
        }
        return Said(of | {event_id.decode(): ("failed",) for event_id in letters}, missing)


def output(number: int) -> StudentOutput:
    return StudentOutput(
        event_id=f"q{number}",
        occurred_at=NOW,
        student="demo",
        student_version=1,
        question=question(number),
        answer=samples(number)[0],
        gold=gold(number),
    )


def _online_row(event: Diagnosed) -> tuple[Any, ...]:
    return (event.verdict, event.decided_by, event.needed, event.missing, event.evidence, event.discarded)


@pytest.mark.parametrize(
    ("order", "constrain"),
    [
        (("gold", "teacher"), True),
        (("gold", "teacher"), False),
        (("consistency",), True),
        (("gold", "consistency&teacher", "teacher"), True),
    ],
)
def test_labels_verdicts_and_missing_skills_are_the_same(
    tmp_path: Path, order: Sequence[str], constrain: bool
) -> None:
    (tmp_path / "online").mkdir()
    here, there = online(tmp_path / "online", order, constrain), offline(tmp_path, order, constrain)
    assert len(here.of) == QUESTIONS and here.of == there.of
    assert here.missing == there.missing and len(here.missing) == len(SKILLS)
    assert {said[0] for said in here.of.values()} == {"correct", "incorrect", "abstained", "failed"}
