from __future__ import annotations

from pathlib import Path

import pytest

from streams.backlog import PATIENCE, Backlog, BacklogStuck
from streams.codec import encode
from streams.consume import ConsumeLoop, ConsumeSettings, Effects
from streams.memory_log import MemoryLog
from streams.state.store import StateStore
from streams.testing.synthetic import output

TOPIC = "student-outputs"


def test_a_backlog_is_what_was_there_and_is_not_read(memory_log: MemoryLog, store: StateStore) -> None:
    memory_log.append([encode(output(number)) for number in range(5)])
    backlog = Backlog.measure(memory_log, "g", [TOPIC])
    memory_log.append([encode(output(number)) for number in range(5, 8)])
    assert backlog.left(store) == 5 and not backlog.done(store, waiting=False)
    loop = ConsumeLoop(memory_log, store, lambda events: Effects(), ConsumeSettings("g", (TOPIC,)))
    while loop.step():
        pass
    assert backlog.done(store, waiting=False) and backlog.left(store) == 0
    assert Backlog.measure(memory_log, "other", [TOPIC]).left(store) == 8


def test_a_backlog_that_nobody_reads_is_an_error_unless_something_is_waited_for(
    memory_log: MemoryLog, tmp_path: Path
) -> None:
    store = StateStore(f"sqlite:///{tmp_path / 'state.db'}")
    memory_log.append([encode(output(1))])
    backlog = Backlog.measure(memory_log, "g", [TOPIC])
    for _ in range(2 * PATIENCE):
        assert not backlog.done(store, waiting=True)
    with pytest.raises(BacklogStuck, match=r"1 records of student-outputs\[\d\] are read by nobody"):
        for _ in range(PATIENCE + 1):
            backlog.done(store, waiting=False)
    store.close()
