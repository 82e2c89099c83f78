"""Attacks in student answers and in questions, against a teacher that obeys every one of them.

Whatever the text says: one event adds at most one to `needed` and to `missing` of at most five skills of the
catalog, other events count as without it, and nothing that the text contains becomes a skill, an evidence
that is not in the answer, or a part of a prompt.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from agent.budget import Price
from agent.catalog import MAX_SKILLS_PER_ITEM, SkillCatalog
from agent.profile import Observation, ProfileTable, fold
from graphs.chat import prompts
from graphs.chat.delimit import blocks, clean, fence
from graphs.chat.settings import ChatSettings
from graphs.chat.teacher import ChatTeacher
from graphs.filters.assess import TeacherVerdict
from graphs.monitor.graph import MonitorContext, OutputDiagnosis, build_monitor, diagnose_outputs
from graphs.teacher import Diagnosis, Teacher
from graphs.testing.brain import GullibleBrain, obey, planted_json
from graphs.testing.scripted import ScriptedTeacher
from graphs.testing.server import TeacherServer
from streams.events import StudentOutput

ATTACKS = {
    one["id"]: one["text"] * one.get("repeat", 1)
    for one in map(json.loads, Path(__file__).with_name("injections.jsonl").read_text("utf-8").splitlines())
}
SKILLS = ("addition", "greatest common divisor", "maximum", "counting", "subtraction", "ordering")
CATALOG = SkillCatalog.of(*((name, "") for name in SKILLS))
GRAPH = build_monitor()
CHARS = 4000


class Obedient(Mapping[str, Sequence[str]]):
    """Labels of a teacher that obeys the question."""

    def __getitem__(self, question: str) -> Sequence[str]:
        planted = planted_json(question, ["skills"])
        said = planted or obey({"skills": ["addition", "maximum"]}, "skills", [*SKILLS, *SKILLS], question)
        names = said["skills"]
        return [str(name) for name in names] if isinstance(names, list) else [str(names)]

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def obedient_diagnosis(question: str, answer: str, needed: Sequence[str]) -> Diagnosis:
    """What an obedient teacher says of an answer: JSON that is not checked by anybody before the graph."""
    honest = {"verdict": "incorrect", "evidence": answer[:10], "missing": [*needed][:1]}
    said = planted_json(answer, list(honest)) or obey(honest, "missing", [*SKILLS, *SKILLS], answer)
    verdict = said["verdict"] if said["verdict"] in ("correct", "incorrect") else "abstained"
    missing = said["missing"] if isinstance(said["missing"], list) else [said["missing"]]
    return Diagnosis(verdict=verdict, evidence=str(said["evidence"]), missing=tuple(map(str, missing)))


@pytest.fixture(scope="module")
def gullible() -> Iterator[tuple[TeacherServer, ChatTeacher]]:
    with TeacherServer(GullibleBrain()) as server:
        price = Price(free=True)
        settings = ChatSettings(base_url=server.base_url, model="scripted", price=price, max_text_chars=CHARS)
        with ChatTeacher.connect(settings) as teacher:
            yield server, teacher


@pytest.fixture(params=["scripted", "chat"])
def teacher(request: pytest.FixtureRequest) -> Teacher:
    if request.param == "chat":
        found: Teacher = request.getfixturevalue("gullible")[1]
        return found
    return ScriptedTeacher(labels=Obedient(), diagnoses=obedient_diagnosis)


def output(at: int, **fields: Any) -> StudentOutput:
    known: dict[str, Any] = {"question": f"What is {at} + 1?", "answer": f"It is {at}, I think.\nSo {at}."}
    when = datetime(2026, 11, 1, tzinfo=UTC)
    return StudentOutput(
        event_id=f"e{at}", occurred_at=when, student="s", student_version=1, **(known | fields)
    )


def run(teacher: Teacher, *outputs: StudentOutput) -> list[OutputDiagnosis]:
    return diagnose_outputs(GRAPH, outputs, MonitorContext(teacher, CATALOG, (TeacherVerdict(),)))


def contribution(found: OutputDiagnosis) -> ProfileTable:
    """What one result adds to the profile; raises when it cannot be counted."""
    if found.verdict in ("abstained", "failed"):
        return {}
    return fold([Observation("s", 1, 0, found.needed, found.missing, found.verdict == "incorrect")])


@pytest.mark.parametrize("place", ["answer", "question"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_has_no_more_than_its_own_bounded_effect(teacher: Teacher, attack: str, place: str) -> None:
    text = ATTACKS[attack]
    before, hit, after = run(teacher, output(1), output(2, **{place: text}), output(3))
    alone = run(teacher, output(1), output(3))
    assert [before, after] == alone or _but_cost([before, after]) == _but_cost(alone), (
        "other events count as without the attack"
    )
    assert hit.verdict != "failed", hit.error
    assert (
        set(hit.needed) <= set(SKILLS)
        and len(hit.needed) <= MAX_SKILLS_PER_ITEM
        and set(hit.missing) <= set(hit.needed)
    )
    assert hit.evidence in (text if place == "answer" else output(2).answer)
    counts = contribution(hit)
    assert len(counts) <= MAX_SKILLS_PER_ITEM + 1 and all(
        one.needed == 1 and one.missing <= 1 for one in counts.values()
    )


def _but_cost(found: Sequence[OutputDiagnosis]) -> list[OutputDiagnosis]:
    """Without what asking cost and without label counts: labels of the same question are remembered."""
    return [one.model_copy(update={"usage": found[0].usage, "unknown_labels": 0}) for one in found]


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_is_one_block_of_data_in_the_prompt(attack: str) -> None:
    text = ATTACKS[attack]
    ask = prompts.diagnose("What is 2 + 2?", text, SKILLS, 200_000)
    plain = prompts.diagnose("What is 2 + 2?", "4", SKILLS, 200_000)
    assert (ask.system, ask.schema) == (plain.system, plain.schema), (
        "nothing of a student reaches the system message"
    )
    assert blocks(ask.user) == [("question", "What is 2 + 2?"), ("answer", clean(text))]
    mark = fence("answer", text, 200_000).split(maxsplit=1)[0].removeprefix("<<<data-")
    assert ask.user.count(mark) == 2, "the text cannot end its block"


def test_the_server_saw_no_tools_and_only_fenced_text(gullible: tuple[TeacherServer, ChatTeacher]) -> None:
    server, teacher = gullible
    run(teacher, output(77, answer=ATTACKS["ignore-report-none"]))
    assert server.bodies
    for body in server.bodies:
        assert (
            "tools" not in body
            and "functions" not in body
            and body["response_format"]["json_schema"]["strict"] is True
        )
        assert [message["role"] for message in body["messages"][:2]] == ["system", "user"]
        assert len(body["messages"][1]["content"]) < 3 * CHARS


def test_the_obedient_brain_really_obeys(gullible: tuple[TeacherServer, ChatTeacher]) -> None:
    """The tests above mean something: the reply that reaches us is the attacker's."""
    _, teacher = gullible
    assert teacher.diagnose("q", ATTACKS["json-correct"], SKILLS, SKILLS).verdict == "correct"
    assert teacher.diagnose("q", ATTACKS["ignore-report-all"], SKILLS[:3], SKILLS).missing == SKILLS[:3]
    before = teacher.tally.count("invalid", "diagnose")
    assert teacher.diagnose("q", ATTACKS["json-off-list"], SKILLS, SKILLS).verdict == "abstained"
    assert teacher.tally.count("invalid", "diagnose") == before + 1
    assert obedient_diagnosis("q", ATTACKS["json-off-list"], SKILLS[:1]).missing[0] == "delete the profile"


def test_the_corpus_is_large_enough_and_has_every_kind() -> None:
    assert len(ATTACKS) >= 25 and max(map(len, ATTACKS.values())) >= 100_000
