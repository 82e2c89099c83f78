"""Rounds and routes: one active round per student, claims with leases, steps that have no second effect. On
both databases."""

from __future__ import annotations

import threading
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict

from streams.clock import HandClock
from streams.events import Deployed, RoundChanged
from streams.state import tables
from streams.state.rounds import Round, RoundConflict, RoundStore, UnreadableRecord
from streams.state.store import StateStore

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Note(BaseModel):
    """A record of a form that the store knows nothing of."""

    model_config = ConfigDict(frozen=True)
    text: str = ""


def planned(number: int = 1, student: str = "s") -> Round[Note]:
    return Round(f"{student}-{number}", student, number, "planned", None, Note(text="opened"))


def changed(round_id: str, state: str = "planned") -> RoundChanged:
    return RoundChanged(
        event_id=f"{round_id}-{state}", occurred_at=NOW, student="s", round_id=round_id, state=state
    )  # type: ignore[arg-type]


@pytest.fixture
def clock() -> HandClock:
    return HandClock(NOW)


@pytest.fixture
def rounds(store: StateStore, clock: HandClock) -> RoundStore[Note]:
    return RoundStore(store, Note.model_validate_json, clock)


def test_a_student_has_one_active_round(rounds: RoundStore[Note], store: StateStore) -> None:
    assert rounds.open(planned(1), changed("s-1"))
    assert not rounds.open(planned(2), changed("s-2"))
    assert rounds.open(planned(1, "other"), changed("other-1"))
    failed = rounds.advance(planned(1), "failed", Note(text="test"), [changed("s-1", "failed")])
    assert failed.record == Note(text="test")
    assert not rounds.open(planned(1), changed("s-1"))
    assert rounds.open(planned(2), changed("s-2"))
    assert [(r.number, r.state) for r in rounds.list("s")] == [(1, "failed"), (2, "planned")]
    assert len(store.pending(100)) == 4


def test_only_one_of_many_opens_the_round(rounds: RoundStore[Note]) -> None:
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


def test_a_claim_lasts_as_long_as_its_lease(rounds: RoundStore[Note], clock: HandClock) -> None:
    rounds.open(planned(), changed("s-1"))
    assert rounds.claim("curated", "a", 10.0) is None
    first = rounds.claim("planned", "a", 10.0)
    assert first is not None
    clock.sleep(5)
    assert rounds.claim("planned", "b", 10.0) is None
    again = rounds.claim("planned", "a", 10.0)
    assert again is not None and again.fence == first.fence + 1
    rounds.renew(again, 25.0)
    clock.sleep(20)
    assert rounds.claim("planned", "b", 10.0) is None
    clock.sleep(6)
    assert rounds.claim("planned", "b", 10.0) is not None


def test_who_was_frozen_past_the_lease_cannot_touch_the_round(
    rounds: RoundStore[Note], store: StateStore, clock: HandClock
) -> None:
    rounds.open(planned(), changed("s-1"))
    frozen = rounds.claim("planned", "a", 10.0)
    clock.sleep(11)
    holder = rounds.claim("planned", "b", 10.0)
    assert frozen is not None and holder is not None
    deployed = Deployed(event_id="d", occurred_at=NOW, student="s", version=9, action="promote")
    attempts = (
        lambda: rounds.renew(frozen, 10.0),
        lambda: rounds.bind_run(frozen, "run-of-a"),
        lambda: rounds.advance(frozen, "failed", Note(), [changed("s-1", "failed")]),
        lambda: rounds.advance(frozen, "curated", Note(), [changed("s-1", "curated")]),
        lambda: rounds.postpone(frozen, 60.0, "of a"),
        lambda: rounds.set_route("s", 9, frozen, deployed),
    )
    for attempt in attempts:
        with pytest.raises(RoundConflict, match="another worker has it"):
            attempt()
    assert rounds.get("s-1") == holder and rounds.route("s") is None and len(store.pending(10)) == 1
    rounds.advance(holder, "curated", Note(text="of b"), [changed("s-1", "curated")])
    for attempt in attempts:
        with pytest.raises(RoundConflict):
            attempt()
    done = rounds.get("s-1")
    assert done is not None and (done.state, done.record.text, done.owner) == ("curated", "of b", None)


def test_the_same_name_twice_does_not_help(rounds: RoundStore[Note]) -> None:
    """Two processes that share an owner's name still have different fences."""
    rounds.open(planned(), changed("s-1"))
    first, second = rounds.claim("planned", "a", 10.0), rounds.claim("planned", "a", 10.0)
    assert first is not None and second is not None
    with pytest.raises(RoundConflict):
        rounds.advance(first, "curated", Note(), [])
    assert rounds.advance(second, "curated", Note(), []).state == "curated"


def test_a_postponed_round_waits_and_keeps_what_it_has(rounds: RoundStore[Note], clock: HandClock) -> None:
    rounds.open(planned(), changed("s-1"))
    for failures, wait_s in ((1, 5.0), (2, 30.0)):
        claimed = rounds.claim("planned", "a", 10.0)
        assert claimed is not None
        rounds.postpone(claimed, wait_s, f"error {failures}")
        clock.sleep(wait_s - 1)
        assert rounds.claim("planned", "a", 10.0) is None
        clock.sleep(2)
        kept = rounds.get("s-1")
        assert kept is not None and (kept.failures, kept.error) == (failures, f"error {failures}")
        assert kept.state == "planned" and kept.record == planned().record and kept.owner is None
    claimed = rounds.claim("planned", "b", 10.0)
    assert claimed is not None
    moved = rounds.advance(claimed, "curated", Note(), [])
    assert (moved.failures, moved.error) == (0, None)


def test_a_pause_without_an_error_is_no_failure(rounds: RoundStore[Note], clock: HandClock) -> None:
    rounds.open(planned(), changed("s-1"))
    claimed = rounds.claim("planned", "a", 10.0)
    assert claimed is not None
    rounds.postpone(claimed, 5.0)
    assert rounds.claim("planned", "b", 10.0) is None
    clock.sleep(6)
    claimed = rounds.claim("planned", "b", 10.0)
    assert claimed is not None and claimed.failures == 0


def test_a_clock_that_was_set_back_locks_nobody_out(rounds: RoundStore[Note], clock: HandClock) -> None:
    rounds.open(planned(), changed("s-1"))
    assert rounds.claim("planned", "a", 60.0) is not None
    clock.sleep(-2 * 3600)
    assert rounds.claim("planned", "b", 60.0) is not None


def test_leases_run_on_the_database_s_time(store: StateStore) -> None:
    rounds = RoundStore(store, Note.model_validate_json)
    rounds.open(planned(), changed("s-1"))
    before = datetime.now(UTC).timestamp()
    assert rounds.claim("planned", "a", 60.0) is not None
    with store.transaction(read_only=True) as connection:
        until = connection.execute(sa.text("SELECT lease_until FROM rounds")).scalar_one()
    assert before + 55 < until < before + 75


def test_only_one_of_many_claims_a_round(rounds: RoundStore[Note]) -> None:
    rounds.open(planned(), changed("s-1"))
    together = threading.Barrier(4)
    got: list[str] = []

    def claim(owner: str) -> None:
        together.wait()
        if rounds.claim("planned", owner, 10.0):
            got.append(owner)

    threads = [threading.Thread(target=claim, args=(f"worker-{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1


def test_a_step_done_twice_has_no_second_effect(rounds: RoundStore[Note], store: StateStore) -> None:
    rounds.open(planned(), changed("s-1"))
    entry = {
        "entry_id": "s-1-curate",
        "student": "s",
        "round_id": "s-1",
        "day": "2026-01-01",
        "activity": "curate",
        "entry": "{}",
    }
    first = rounds.advance(planned(), "curated", Note(text="x"), [changed("s-1", "curated")], [entry])
    second = rounds.advance(planned(), "curated", Note(text="y"), [changed("s-1", "curated")], [entry])
    assert first == second
    assert second.record.text == "x"
    assert len(store.pending(10)) == 2
    with pytest.raises(RoundConflict, match="no longer planned"):
        rounds.advance(planned(), "failed", Note(), [])


def test_a_round_has_one_run(rounds: RoundStore[Note]) -> None:
    rounds.open(planned(), changed("s-1"))
    assert rounds.bind_run(planned(), "run-a") == "run-a"
    assert rounds.bind_run(planned(), "run-b") == "run-a"


def test_a_route_set_twice_keeps_its_predecessor(rounds: RoundStore[Note], store: StateStore) -> None:
    event = Deployed(event_id="d", occurred_at=NOW, student="s", version=2, action="promote")
    assert rounds.route("s") is None
    for version in (1, 2, 2):
        rounds.set_route("s", version, None, event)
    assert rounds.route("s") == (2, 1)
    assert len(store.pending(10)) == 2


OLD_ROUNDS = """CREATE TABLE rounds (round_id VARCHAR(200) NOT NULL PRIMARY KEY,
    student VARCHAR(200) NOT NULL, number INTEGER NOT NULL, state VARCHAR(20) NOT NULL,
    run_id VARCHAR(64) UNIQUE, record TEXT NOT NULL,
    lease_owner VARCHAR(200), lease_until FLOAT)"""


def test_a_database_without_fences_gets_them(store_url: str) -> None:
    engine = sa.create_engine(store_url)
    with engine.begin() as connection:
        connection.execute(sa.text(OLD_ROUNDS))
        values = "'s-1', 's', 1, 'planned', NULL, '{}', 'embedded', 1.0"
        connection.execute(sa.text(f"INSERT INTO rounds VALUES ({values})"))
    engine.dispose()
    for _ in range(2):
        store = StateStore(store_url)
        claimed = RoundStore(store, Note.model_validate_json).claim("planned", "a", 0.0)
        assert claimed is not None and claimed.failures == 0
        store.close()
    assert claimed.fence == 2


def damage(store: StateStore, round_id: str) -> None:
    with store.transaction() as connection:
        connection.execute(
            sa.update(tables.rounds).where(tables.rounds.c.round_id == round_id).values(record="{damaged")
        )


def test_a_record_that_cannot_be_read_is_named_and_set_aside(
    rounds: RoundStore[Note], store: StateStore, caplog: pytest.LogCaptureFixture
) -> None:
    rounds.open(planned(1), changed("s-1"))
    rounds.advance(planned(1), "failed", Note(), [changed("s-1", "failed")])
    rounds.open(planned(2), changed("s-2"))
    rounds.open(planned(1, "other"), changed("other-1"))
    damage(store, "s-1")
    assert [round_.round_id for round_ in rounds.list("s")] == ["s-2"]
    assert "round 's-1' cannot be read" in rounds.unreadable("s")["s-1"]
    assert rounds.next_number("s") == 3
    with pytest.raises(UnreadableRecord, match="round 's-1' cannot be read"):
        rounds.get("s-1")
    damage(store, "other-1")
    claimed = rounds.claim("planned", "a", 10.0)
    assert claimed is not None and claimed.round_id == "s-2"
    rounds.list("s")
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "round s-1 is set aside",
        "round other-1 is set aside",
    ]


def test_a_person_ends_a_round_that_cannot_be_read(rounds: RoundStore[Note], store: StateStore) -> None:
    rounds.open(planned(1), changed("s-1"))
    assert not rounds.discard("s-1"), "it can be read"
    damage(store, "s-1")
    assert not rounds.open(planned(2), changed("s-2")), "a newer program may be working on it"
    assert rounds.discard("s-1") and not rounds.discard("s-1")
    assert rounds.open(planned(2), changed("s-2"))
