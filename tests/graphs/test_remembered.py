"""A teacher's memory: what was said once is not asked again, by whom and whenever it is asked."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agent.items import PoolItem
from graphs.chat.cache import MemoryReplies, SqliteReplies
from graphs.remembered import RememberedTeacher
from graphs.teacher import Diagnosis, TeacherUnavailable
from graphs.testing.scripted import ScriptedTeacher

ITEM = PoolItem(item_id="p", question="1 + 1?", solution="It is 2.", answer="2", skills=("add",))


def test_every_kind_of_reply_outlives_the_process(tmp_path: Path) -> None:
    script = ScriptedTeacher(
        labels={"q": ("add",)}, diagnoses={("q", "a"): Diagnosis(verdict="incorrect", missing=("add",))}
    )
    said = []
    for _ in range(2):
        with SqliteReplies(tmp_path / "replies.sqlite") as replies:
            teacher = RememberedTeacher(script, replies)
            said.append(
                [
                    teacher.label("q", ["add"]),
                    teacher.diagnose("q", "a", ("add",), ["add"]),
                    teacher.write("add", [ITEM], 2, 1),
                    teacher.solve("q", 2, 1),
                    teacher.name_skill("q"),
                    teacher.cluster(["add"], 1),
                    teacher.rewrite(ITEM, 2, 1),
                ]
            )
    assert said[0] == said[1] and len(script.calls) == 7
    assert said[0][0].usage.calls == said[1][0].usage.calls == 1


def test_other_arguments_another_prompt_and_another_teacher_are_asked_anew() -> None:
    replies = MemoryReplies()
    script = ScriptedTeacher()
    for asked in (script, ScriptedTeacher(prompt_version="2"), ScriptedTeacher(name="other")):
        for names in (["add"], ["add", "gcd"]):
            RememberedTeacher(asked, replies).label("q", names)
        assert asked.count("label") == 2


def test_an_error_is_not_kept_and_equal_calls_under_way_are_one() -> None:
    script = ScriptedTeacher(unavailable={"label": 1})
    teacher = RememberedTeacher(script, MemoryReplies())
    with pytest.raises(TeacherUnavailable):
        teacher.label("q", ["add"])
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: teacher.label("q", ["add"]), range(40)))
    assert script.count("label") == 2
