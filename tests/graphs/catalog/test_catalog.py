"""The catalog graph: names, clusters in bounded batches, labels per subject, and going on where it died."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from agent.budget import Price
from agent.catalog import MAX_SKILLS_PER_ITEM, Skill
from graphs.catalog.graph import build_catalog, run_catalog
from graphs.catalog.plan import (
    CRASH_POINTS,
    CatalogContext,
    CatalogItem,
    CatalogPlan,
    Catalogued,
    EmptyCatalog,
    ItemsChanged,
)
from graphs.chat.cache import SqliteReplies
from graphs.chat.settings import ChatSettings
from graphs.chat.teacher import ChatTeacher
from graphs.checkpoints import sqlite_checkpoints
from graphs.testing.scripted import ScriptedTeacher
from graphs.testing.server import TeacherServer
from streams.crash import Crashed, CrashPoint, Raise, no_crash

WORDS = ("Add", "Find", "Show", "Count", "Draw", "Prove", "Solve")


def item(at: int, subject: str = "") -> CatalogItem:
    return CatalogItem(
        item_id=f"{subject}{at}", question=f"{WORDS[at % len(WORDS)]} number {at}", subject=subject
    )


ITEMS = [item(at) for at in range(21)]
LABELS = {one.question: ("add", "find", "levitate") for one in ITEMS}
PLAN = CatalogPlan(skills_per_subject=4, names_per_prompt=8, per_task=2)


def make(
    teacher: Any, items: Sequence[CatalogItem] = ITEMS, plan: CatalogPlan = PLAN, **more: Any
) -> Catalogued:
    return run_catalog(build_catalog(), "c1", plan, CatalogContext(teacher, items), **more)


def test_every_question_is_named_clustered_and_labelled_from_the_catalog() -> None:
    teacher = ScriptedTeacher(labels=LABELS)
    done = make(teacher)
    assert done.subjects[""].names == ("add", "count", "draw", "find"), (
        "the commonest names first, at most four"
    )
    assert set(done.labels) == {one.item_id for one in ITEMS} and done.unlabelled == ()
    assert set(done.labels.values()) == {("add", "find")}, "only skills of the catalog"
    assert (teacher.count("name_skill"), teacher.count("cluster"), teacher.count("label")) == (21, 1, 21)
    assert done.usage.calls == 43


def test_many_names_are_clustered_in_batches_of_bounded_size_until_one_is_left() -> None:
    sizes: list[int] = []

    def clusters(names: Sequence[str], at_most: int) -> tuple[Skill, ...]:
        sizes.append(len(names))
        return tuple(Skill(name=f"{name}") for name in names[:at_most])

    teacher = ScriptedTeacher(names=lambda question: question.casefold(), clusters=clusters)
    done = make(teacher, [item(at) for at in range(60)])
    assert max(sizes) <= 8 and len(done.catalog) == 4 and len(sizes) == 8 + 4 + 2 + 1


def test_subjects_have_catalogs_of_their_own() -> None:
    items = [
        item(at, subject)
        for subject in ("Algebra", "Geometry")
        for at in range(4 if subject == "Algebra" else 7)
    ]
    done = make(ScriptedTeacher(labels={one.question: ("draw", "add") for one in items}), items)
    assert done.subjects["Algebra"].names == ("add", "count", "find", "show")
    assert done.labels["Algebra0"] == ("add",), "draw is no skill of algebra here"
    assert set(done.catalog.names) == {"add", "count", "find", "show", "draw"}


def test_what_the_teacher_cannot_do_is_reported() -> None:
    teacher = ScriptedTeacher(labels={ITEMS[0].question: ("add",)}, clusters=lambda names, at_most: ())
    done = make(teacher)
    assert done.unclustered == 1 and done.catalog.names == ("add", "count", "draw", "find")
    assert done.labels == {"0": ("add",)} and len(done.unlabelled) == 20


def test_no_name_at_all_is_an_error() -> None:
    with pytest.raises(EmptyCatalog, match="named no skill"):
        make(ScriptedTeacher(names=lambda question: ""))


def test_inputs_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValidationError, match="twice"):
        CatalogPlan(skills_per_subject=20, names_per_prompt=30)
    with pytest.raises(ValueError, match="every item id once"):
        make(ScriptedTeacher(), [ITEMS[0], ITEMS[0]])
    with pytest.raises(ValueError, match="at least one"):
        make(ScriptedTeacher(), [])


def test_an_interrupted_run_is_not_continued_with_other_questions(tmp_path: Path) -> None:
    with sqlite_checkpoints(tmp_path / "c.sqlite") as saver:
        graph = build_catalog(saver)
        with pytest.raises(Crashed):
            run_catalog(
                graph, "c1", PLAN, CatalogContext(ScriptedTeacher(), ITEMS, Raise("catalog.gather.end"))
            )
        with pytest.raises(ItemsChanged, match="new run id"):
            run_catalog(graph, "c1", PLAN, CatalogContext(ScriptedTeacher(), ITEMS[1:]))


FEW = ITEMS[:7]


def chat(server: TeacherServer, cache: SqliteReplies) -> ChatTeacher:
    return ChatTeacher.connect(
        ChatSettings(base_url=server.base_url, model="scripted", price=Price(free=True)), cache
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Catalogued, int]:
    """The undisturbed run with the chat teacher, and its calls."""
    with (
        TeacherServer() as server,
        SqliteReplies(tmp_path_factory.mktemp("whole") / "replies.sqlite") as cache,
    ):
        with chat(server, cache) as teacher:
            done = make(teacher, FEW, max_concurrency=1)
        return done, server.calls.total()


@pytest.mark.parametrize("point", CRASH_POINTS)
def test_a_run_that_died_goes_on_without_asking_anything_again(
    tmp_path: Path, whole: tuple[Catalogued, int], point: str
) -> None:
    kept: list[Catalogued] = []

    def attempt(crash: CrashPoint) -> None:
        with (
            SqliteReplies(tmp_path / "replies.sqlite") as cache,
            sqlite_checkpoints(tmp_path / "checkpoints.sqlite") as saver,
        ):
            with chat(server, cache) as teacher:
                run_catalog(
                    build_catalog(saver),
                    "c1",
                    PLAN,
                    CatalogContext(teacher, FEW, crash),
                    kept.append,
                    max_concurrency=1,
                )
            assert not list(saver.list(None)), "the thread is deleted at the end"

    with TeacherServer() as server:
        with pytest.raises(Crashed):
            attempt(Raise(point))
        attempt(no_crash)
        assert server.calls.total() == whole[1]
    assert kept == [whole[0]]


def test_the_chat_teacher_labels_within_the_catalog(whole: tuple[Catalogued, int]) -> None:
    done, _ = whole
    assert done.labels and all(
        1 <= len(skills) <= MAX_SKILLS_PER_ITEM and set(skills) <= set(done.catalog.names)
        for skills in done.labels.values()
    )
