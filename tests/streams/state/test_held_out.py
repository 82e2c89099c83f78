"""Versions of the held-out set in the store (SQLite and PostgreSQL): made once, never changed."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from agent.items import HeldOutItem
from streams.log import Partition
from streams.state.held_out import HeldOutStore, reserved_row
from streams.state.store import Batch, StateStore

P0 = Partition("t", 0)


def item(name: str) -> HeldOutItem:
    return HeldOutItem(item_id=name, question=f"{name}?", answer="1", skills=("gcd",), stratum="s")


def bring(store: StateStore, *names: str, student: str = "s") -> None:
    """The questions come in with a batch."""
    at = store.offsets(student).get(P0, 0)
    rows = [reserved_row(student, item(name), "gold") for name in names]
    store.commit(Batch(group=student, expected={P0: at}, offsets={P0: at + 1}, held_out=rows))


def names(items: Sequence[HeldOutItem]) -> str:
    return "+".join(item.item_id for item in items)


def held(store: StateStore) -> dict[str, int | None]:
    return {known.item.item_id: known.version for known in HeldOutStore(store, "s").reserved()}


def test_a_version_keeps_its_questions_and_the_next_adds_to_them(store: StateStore) -> None:
    reserve = HeldOutStore(store, "s")
    assert reserve.latest() is None and reserve.reserved() == []
    bring(store, "b", "a")
    bring(store, "x", student="other")
    assert held(store) == {"a": None, "b": None}
    assert reserve.grow([item("a"), item("b")], 10, names, answers=100) == 1
    bring(store, "a", "c", "d")  # a is known already
    assert held(store) == {"a": 1, "b": 1, "c": None, "d": None}
    first = reserve.latest()
    assert first is not None and (first.sha256, first.items, first.grown) == ("a+b", 12, 2)
    assert reserve.grow([item("c")], 10, names, answers=200) == 2
    latest = HeldOutStore(store, "s").latest()
    assert latest is not None and (latest.sha256, latest.items, latest.answers) == ("a+b+c", 13, 200)
    assert held(store) == {"a": 1, "b": 1, "c": 2, "d": None}


def test_a_refused_question_never_comes_back(store: StateStore) -> None:
    reserve = HeldOutStore(store, "s")
    bring(store, "a", "b")
    reserve.refuse(["a"])
    bring(store, "a")
    assert held(store) == {"b": None}
    reserve.grow([item("a"), item("b")], 0, names, answers=1)
    reserve.refuse(["b"])  # too late: it has a version
    assert held(store) == {"b": 1}


def test_the_stamp_changes_with_every_change(store: StateStore) -> None:
    reserve, seen = HeldOutStore(store, "s"), set()
    for change in (
        lambda: None,
        lambda: bring(store, "a", "b"),
        lambda: reserve.refuse(["a"]),
        lambda: reserve.grow([item("b")], 0, names, answers=1),
    ):
        change()
        seen.add(reserve.stamp())
        bring(store, "z", student="other")
    assert len(seen) == 4


def test_two_processes_may_note_a_drift_at_once(store: StateStore) -> None:
    """The slower monitor ended with a violated primary key."""
    reserve = HeldOutStore(store, "s")
    with ThreadPoolExecutor(4) as pool:
        for _ in pool.map(lambda _: reserve.outdate("gcd", 30), range(12)):
            pass
    reserve.outdate("gcd", 90)
    HeldOutStore(store, "other").outdate("gcd", 1)
    assert reserve.outdated() == {"gcd": 90}
