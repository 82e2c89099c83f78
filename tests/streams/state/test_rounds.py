"""Rounds and routes: one active round per student, claims with leases, steps that have no second effect. On
both databases."""

from __future__ import annotations

import threading
from datetime import UTC, datetime

import pytest

from streams.events import Deployed, RoundChanged
from streams.state.rounds import Round, RoundConflict, RoundStore
from streams.state.store import StateStore

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def planned(number: int = 1, student: str = "s") -> Round:
    return Round(f"{student}-{number}", student, number, "planned", None, {"skills": ["add"]})


def changed(round_id: str, state: str = "planned") -> RoundChanged:
    return RoundChanged(
        event_id=f"{round_id}-{state}", occurred_at=NOW, student="s", round_id=round_id, state=state
    )  # type: ignore[arg-type]


@pytest.fixture
def rounds(store: StateStore) -> RoundStore:
    return RoundStore(store)


def test_a_student_has_one_active_round(rounds: RoundStore, store: StateStore) -> None:
    assert rounds.open(planned(1), changed("s-1"))
    assert not rounds.open(planned(2), changed("s-2"))
    assert rounds.open(planned(1, "other"), changed("other-1"))
    failed = rounds.advance(planned(1), "failed", {"why": "test"}, [changed("s-1", "failed")])
    assert failed.record == {"skills": ["add"], "why": "test"}
    assert not rounds.open(planned(1), changed("s-1"))
    assert rounds.open(planned(2), changed("s-2"))
    assert [(r.number, r.state) for r in rounds.list("s")] == [(1, "failed"), (2, "planned")]
    assert len(store.pending(100)) == 4


def test_only_one_of_many_opens_the_round(rounds: RoundStore) -> None:
    together = threading.Barrier(4)
    opened: list[bool] = []

    def plan(number: int) -> None:
        together.wait()
        opened.append(rounds.open(planned(number), changed(f"s-{number}")))

    threads = [threading.Thread(target=plan, args=(number,)) for number in (1, 2, 1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(opened) == [False, False, False, True]


def test_a_claim_lasts_as_long_as_its_lease(rounds: RoundStore) -> None:
    rounds.open(planned(), changed("s-1"))
    assert rounds.claim("curated", "a", 0.0, 10.0) is None
    claimed = rounds.claim("planned", "a", 0.0, 10.0)
    assert claimed is not None
    assert rounds.claim("planned", "b", 5.0, 10.0) is None
    again = rounds.claim("planned", "a", 5.0, 10.0)
    assert again is not None
    rounds.renew("s-1", "a", 30.0)
    assert rounds.claim("planned", "b", 20.0, 10.0) is None
    assert rounds.claim("planned", "b", 31.0, 10.0) is not None
    with pytest.raises(RoundConflict, match="no longer held by a"):
        rounds.renew("s-1", "a", 60.0)


def test_only_one_of_many_claims_a_round(rounds: RoundStore) -> None:
    rounds.open(planned(), changed("s-1"))
    together = threading.Barrier(4)
    got: list[str] = []

    def claim(owner: str) -> None:
        together.wait()
        if rounds.claim("planned", owner, 0.0, 10.0):
            got.append(owner)

    threads = [threading.Thread(target=claim, args=(f"worker-{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1


def test_a_step_done_twice_has_no_second_effect(rounds: RoundStore, store: StateStore) -> None:
    rounds.open(planned(), changed("s-1"))
    entry = {
        "entry_id": "s-1-curate",
        "student": "s",
        "round_id": "s-1",
        "day": "2026-01-01",
        "activity": "curate",
        "entry": "{}",
    }
    first = rounds.advance(planned(), "curated", {"data": "x"}, [changed("s-1", "curated")], [entry])
    second = rounds.advance(planned(), "curated", {"data": "y"}, [changed("s-1", "curated")], [entry])
    assert first == second
    assert second.record["data"] == "x"
    assert len(store.pending(10)) == 2
    with pytest.raises(RoundConflict, match="is curated"):
        rounds.advance(planned(), "failed", {}, [])


def test_a_round_has_one_run(rounds: RoundStore) -> None:
    rounds.open(planned(), changed("s-1"))
    assert rounds.bind_run("s-1", "run-a") == "run-a"
    assert rounds.bind_run("s-1", "run-b") == "run-a"


def test_a_route_set_twice_keeps_its_predecessor(rounds: RoundStore, store: StateStore) -> None:
    event = Deployed(event_id="d", occurred_at=NOW, student="s", version=2, action="promote")
    assert rounds.route("s") is None
    for version in (1, 2, 2):
        rounds.set_route("s", version, None, event)
    assert rounds.route("s") == (2, 1)
    assert len(store.pending(10)) == 2
