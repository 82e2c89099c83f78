"""What docs/operations.md says of backups: a state store from yesterday catches up with the log of today."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from streams.codec import encode
from streams.consume import ConsumeLoop, ConsumeSettings
from streams.continuity import TopicChanged
from streams.local_log import LocalLog
from streams.state.outbox import OutboxRelay
from streams.state.store import StateStore
from streams.testing.synthetic import diagnose, expected_buckets, output

TOPIC = "student-outputs"


def work_off(log: LocalLog, folder: Path) -> StateStore:
    store = StateStore(f"sqlite:///{folder}/state.db")
    consuming = ConsumeLoop(log, store, diagnose, ConsumeSettings("monitor", (TOPIC,)))
    try:
        while any([consuming.step(), consuming.step()]):  # the first only seeks
            pass
    finally:
        consuming.close()
    OutboxRelay(store, log).step()
    return store


def diagnoses(log: LocalLog) -> tuple[int, int]:
    """Records, and ids among them."""
    ids = [dict(record.headers)["ce_id"] for record in log.read("diagnoses")]
    return len(ids), len(set(ids))


def test_an_older_store_catches_up_with_the_log(tmp_path: Path) -> None:
    events = [output(n) for n in range(60)]
    with LocalLog(tmp_path / "log.db", instance="one") as log:
        log.append([encode(event) for event in events[:30]])
        work_off(log, tmp_path).close()
        shutil.copy(tmp_path / "state.db", tmp_path / "backup.db")
        log.append([encode(event) for event in events[30:]])
        work_off(log, tmp_path).close()
        shutil.copy(tmp_path / "backup.db", tmp_path / "state.db")
        store = work_off(log, tmp_path)
        assert store.buckets() == expected_buckets(events)
        assert diagnoses(log) == (90, 60), "announced again, under the same ids"


def test_an_older_log_stops_the_worker(tmp_path: Path) -> None:
    with LocalLog(tmp_path / "log.db", instance="one") as log:
        log.append([encode(output(n)) for n in range(30)])
        log.close()
        shutil.copy(tmp_path / "log.db", tmp_path / "backup.db")
    with LocalLog(tmp_path / "log.db", instance="one") as log:
        log.append([encode(output(n)) for n in range(30, 60)])
        work_off(log, tmp_path).close()
    shutil.copy(tmp_path / "backup.db", tmp_path / "log.db")
    with LocalLog(tmp_path / "log.db", instance="one") as log, pytest.raises(TopicChanged, match="adopt"):
        work_off(log, tmp_path)
