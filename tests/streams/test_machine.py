"""A state machine over {deliver, duplicate, reorder, rebalance, crash, poison}: whatever happens, in whatever
order, every good event counts once and every poison record is one dead letter. On the fake and on the local
log."""

from __future__ import annotations

import shutil
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from streams import dead_letters
from streams.clock import HandClock
from streams.codec import encode
from streams.consume import ConsumeLoop, ConsumeSettings
from streams.crash import Crashed, Raise
from streams.events import StudentOutput
from streams.local_log import LEASE_S, LocalLog
from streams.log import EventLog
from streams.memory_log import MemoryLog
from streams.state.outbox import OutboxRelay, RelaySettings
from streams.state.store import StateStore
from streams.testing.synthetic import POISON, diagnose, expected_buckets, output, poison
from streams.topics import TopicSpec

TOPIC = StudentOutput.TOPIC
SPECS = [TopicSpec(TOPIC, 3, -1), TopicSpec(f"{TOPIC}.dlq", 1, -1), TopicSpec("diagnoses", 2, -1)]
POINTS = ["consume.after-poll", "consume.before-commit", "consume.after-commit"]
RELAY_POINTS = ["outbox.before-append", "outbox.after-append"]


class Machine(RuleBasedStateMachine):
    """Up to three members of one group, each with a relay, on one SQLite store."""

    kind = "memory"

    @initialize()
    def start(self) -> None:
        memory = Path("/dev/shm")  # nothing here outlives the process: spare the disk
        self.folder = Path(
            tempfile.mkdtemp(prefix="skillloop-machine-", dir=memory if memory.is_dir() else None)
        )
        self.clock = HandClock(datetime(2026, 1, 1, tzinfo=UTC))
        self.store = StateStore(f"sqlite:///{self.folder}/state.db", self.clock)
        self.log: EventLog = (
            MemoryLog(SPECS) if self.kind == "memory" else LocalLog(self.folder / "log.db", SPECS, self.clock)
        )
        self.members = [self.member()]
        self.sent = 0
        self.poisoned = 0

    def member(self, crash: Raise | None = None) -> ConsumeLoop:
        consume = ConsumeSettings("group", (TOPIC,), max_records=4, poll_timeout_s=0.0)
        return ConsumeLoop(self.log, self.store, diagnose, consume, clock=self.clock, crash=crash)

    def relay(self, crash: Raise | None = None) -> None:
        OutboxRelay(
            self.store, self.log, crash or Raise("never"), RelaySettings(batch=3, lease_s=30), self.clock
        ).step()

    @rule(count=st.integers(1, 5))
    def deliver(self, count: int) -> None:
        self.log.append([encode(output(self.sent + n)) for n in range(count)])
        self.sent += count

    @rule()
    def reorder(self) -> None:
        self.log.append([encode(output(self.sent + n)) for n in (2, 0, 1)])
        self.sent += 3

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def duplicate(self, data: st.DataObject) -> None:
        self.log.append([encode(output(data.draw(st.integers(0, self.sent - 1))))])

    @rule(kind=st.sampled_from([kind for kind in POISON if kind != "oversized"]))
    def poison(self, kind: str) -> None:
        self.log.append([poison(kind, self.poisoned)])
        self.poisoned += 1

    @rule(which=st.integers(0, 2))
    def consume(self, which: int) -> None:
        self.members[which % len(self.members)].step()

    @rule()
    def publish(self) -> None:
        self.relay()

    @rule(seconds=st.sampled_from([1, LEASE_S + 1]))
    def wait(self, seconds: float) -> None:
        self.clock.sleep(seconds)

    @precondition(lambda self: len(self.members) < 3)
    @rule()
    def rebalance_in(self) -> None:
        self.members.append(self.member())

    @precondition(lambda self: len(self.members) > 1)
    @rule(which=st.integers(0, 2))
    def rebalance_out(self, which: int) -> None:
        self.members.pop(which % len(self.members)).close()

    @rule(point=st.sampled_from(POINTS), which=st.integers(0, 2))
    def crash(self, point: str, which: int) -> None:
        """A member dies at a crash point. It does not leave the group: the fake forgets it, the local log
        waits for its lease."""
        doomed = self.member(Raise(point))
        try:
            for _ in range(3):
                for member in self.members:
                    member.step()
                doomed.step()
        except Crashed:
            if isinstance(self.log, MemoryLog):
                self.log.members["group"].pop()
        else:
            doomed.close()

    @rule(point=st.sampled_from(RELAY_POINTS))
    def crash_in_the_relay(self, point: str) -> None:
        try:
            self.relay(Raise(point))
        except Crashed:
            pass

    @invariant()
    def counts_never_exceed_the_truth(self) -> None:
        if hasattr(self, "store"):
            expected = expected_buckets(output(n) for n in range(self.sent))
            assert all(
                counts[0] <= expected[key][0] and counts[1] <= expected[key][1]
                for key, counts in self.store.buckets().items()
            )

    def teardown(self) -> None:
        if not hasattr(self, "members"):
            return
        for member in self.members:
            member.close()
        self.clock.sleep(LEASE_S + 1)
        last = self.member()
        quiet = 0
        while quiet < 3:
            quiet = 0 if last.step() else quiet + 1
        self.relay()
        letters = [letter.letter_id for letter in dead_letters.read_all(self.log, TOPIC)]
        assert self.store.buckets() == expected_buckets(output(n) for n in range(self.sent))
        assert len(letters) == len(set(letters)) == self.poisoned
        assert self.store.pending(1) == []
        assert sum(self.log.end_offsets("diagnoses").values()) == self.sent
        self.store.close()
        self.log.close()
        shutil.rmtree(self.folder)


class LocalMachine(Machine):
    kind = "local"


TestFake = Machine.TestCase
TestLocal = LocalMachine.TestCase
TestFake.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestLocal.settings = settings(max_examples=20, stateful_step_count=20, deadline=None)
