"""Attacks: somebody sets the clock of a machine, or the clocks of two machines differ."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from graphs.chat.pace import Pace
from streams.clock import HandClock
from streams.codec import encode
from streams.consume import ConsumeLoop, ConsumeSettings
from streams.local_log import LEASE_S, LocalLog
from streams.log import Outgoing
from streams.memory_log import MemoryLog
from streams.state.outbox import OutboxRelay
from streams.state.store import StateStore
from streams.testing.synthetic import diagnose, expected_buckets, output

TOPIC = "student-outputs"
START = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = 3600.0


@pytest.fixture
def store(tmp_path: Path) -> StateStore:
    return StateStore(f"sqlite:///{tmp_path}/state.db")


@pytest.mark.parametrize("step", [-HOUR, HOUR])
def test_a_pause_of_half_a_second_stays_one_when_the_clock_is_set(store: StateStore, step: float) -> None:
    """It lasted 3,602 s."""
    clock, log = HandClock(START), MemoryLog()
    log.append([encode(output(n)) for n in range(3)])
    consuming = ConsumeLoop(log, store, diagnose, ConsumeSettings("g", (TOPIC,)), clock=clock)
    log.unavailable = 1
    consuming.step()
    clock.set(step)
    consuming.step()
    assert consuming.waiting  # nor does it end early
    clock.sleep(0.6)
    consuming.step()
    assert store.buckets() == expected_buckets(output(n) for n in range(3))


@pytest.mark.parametrize("step", [-HOUR, HOUR])
def test_a_dead_member_keeps_its_partitions_for_its_lease_when_the_clock_is_set(
    tmp_path: Path, step: float
) -> None:
    """It kept them for 3,640 s; set forward, the living lost theirs."""
    clock = HandClock(START)
    log = LocalLog(tmp_path / "log.db", clock=clock)
    dead, living = log.consumer("g", [TOPIC]), log.consumer("g", [TOPIC])
    dead.poll(1, 0.0)
    clock.set(step)
    living.poll(1, 0.0)
    assert len(living.assignment()) == len(dead.assignment()) == 4
    clock.sleep(LEASE_S / 2)
    living.poll(1, 0.0)
    clock.sleep(LEASE_S / 2 + 1)
    living.poll(1, 0.0)
    assert len(living.assignment()) == 8
    log.close()


def test_members_from_before_a_reboot_are_dead(tmp_path: Path) -> None:
    """The time since boot begins anew; wall-clock leases of an earlier version end in a far future."""
    for earlier in (START, datetime(1970, 1, 2, tzinfo=UTC)):
        with LocalLog(tmp_path / f"{earlier.year}.db", clock=HandClock(earlier)) as log:
            log.consumer("g", [TOPIC]).poll(1, 0.0)
        with LocalLog(
            tmp_path / f"{earlier.year}.db", clock=HandClock(datetime(1970, 1, 1, tzinfo=UTC))
        ) as log:
            assert len(log.consumer("g", [TOPIC]).assignment()) == 8


class SlowLog(MemoryLog):
    """A log in whose appends something else happens first."""

    def __init__(self, meanwhile: Any) -> None:
        super().__init__()
        self.meanwhile = meanwhile

    def append(self, records: Any) -> None:
        meanwhile, self.meanwhile = self.meanwhile, lambda: None
        meanwhile()
        super().append(records)


def test_two_relays_whose_clocks_differ_send_each_row_once(store: StateStore) -> None:
    """Five rows were sent as ten: the second relay, 40 s ahead, took the claims of the first for dead."""
    ahead = HandClock(START)
    ahead.sleep(40)
    log = SlowLog(lambda: OutboxRelay(store, log, clock=ahead).step())
    with store.transaction() as connection:
        store.publish([Outgoing("alerts", None, str(n).encode()) for n in range(5)], connection)
    OutboxRelay(store, log, clock=HandClock(START)).step()
    assert sum(log.end_offsets("alerts").values()) == 5
    assert store.pending(10) == []


def test_a_stores_time_is_not_the_hosts_wall_clock(
    store: StateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a lease is measured by goes on evenly, and every process that opens the file has the same."""
    with store.transaction() as connection:
        before = store.time(connection)
    monkeypatch.setattr("time.time", lambda: before - HOUR)
    again = StateStore(store.url.render_as_string())
    with store.transaction() as one, again.transaction(read_only=True) as other:
        assert before <= store.time(one) <= again.time(other) < before + 60


def test_a_teachers_pause_is_not_prolonged_by_a_clock_set_back() -> None:
    clock = HandClock(START)
    pace = Pace(1, None, clock)
    pace.pause(2.0)
    clock.set(-HOUR)
    began = clock.monotonic()
    with pace.turn():
        assert clock.monotonic() - began == 2.0
