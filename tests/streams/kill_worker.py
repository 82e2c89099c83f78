"""A real worker process on the local log, for test_kill.py: consumes and relays until nothing is left, or
until it is killed."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from streams.consume import ConsumeLoop, ConsumeSettings
from streams.crash import ENVIRONMENT, crash_point
from streams.events import StudentOutput
from streams.local_log import LocalLog
from streams.state.outbox import OutboxRelay, RelaySettings
from streams.state.store import StateStore
from streams.testing.synthetic import diagnose


def main(folder: Path, url: str) -> None:
    crash = crash_point(os.environ.get(ENVIRONMENT))
    store = StateStore(url)
    with LocalLog(folder / "log.db", instance="worker") as log:
        loop = ConsumeLoop(
            log,
            store,
            diagnose,
            ConsumeSettings("group", (StudentOutput.TOPIC,), max_records=40),
            crash=crash,
        )
        relay = OutboxRelay(store, log, crash, RelaySettings(batch=40, lease_s=1.0, send_within_s=0.5))
        deadline = time.monotonic() + 60
        while (loop.step() or relay.step() or store.pending(1)) and time.monotonic() < deadline:
            relay.step()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
