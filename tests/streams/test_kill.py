"""A real process dies by SIGKILL at each named crash point and is started again: every event once, every
poison record once."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from streams import dead_letters
from streams.crash import ENVIRONMENT
from streams.events import StudentOutput
from streams.local_log import LocalLog
from streams.state.store import StateStore
from streams.testing.synthetic import expected_buckets, traffic
from tests.warm import run_warm

WORKER = Path(__file__).with_name("kill_worker.py")


def work(folder: Path, url: str, crash_at: str = "") -> int:
    return run_warm(WORKER, folder, url, environ={ENVIRONMENT: crash_at}).returncode


@pytest.mark.parametrize(
    "point",
    [
        "consume.after-poll:2",
        "consume.before-commit:2",
        "consume.after-commit:3",
        "outbox.before-append:2",
        "outbox.after-append:2",
    ],
)
def test_a_killed_worker_that_starts_again_loses_and_repeats_nothing(
    tmp_path: Path, store_url: str, point: str
) -> None:
    sent = traffic(seed=len(point), events=200)
    with LocalLog(tmp_path / "log.db") as log:
        log.append(sent.records)
        assert work(tmp_path, store_url, point) == -signal.SIGKILL
        assert work(tmp_path, store_url) == 0
        store = StateStore(store_url)
        letters = [letter.letter_id for letter in dead_letters.read_all(log, StudentOutput.TOPIC)]
        assert store.buckets() == expected_buckets(sent.events)
        assert store.pending(1) == []
        assert len(letters) == len(set(letters)) == sent.poisoned
        assert sum(log.end_offsets("diagnoses").values()) == 200
        store.close()
