"""`skillloop store compact`, and what `skillloop status` says, on the local store."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console
from typer.testing import CliRunner

from agent.profile import ALL
from loop.cli.status import show_status, unknown_versions
from loop.cli.store import store_app
from loop.config import load
from loop.workers.record import open_rounds
from streams.codec import encode
from streams.consume import ConsumeLoop, ConsumeSettings
from streams.events import Deployed
from streams.local_log import LocalLog
from streams.state.store import StateStore
from streams.testing.synthetic import START, diagnose, output


def test_a_store_is_compacted_after_it_was_told_what_would_go(tmp_path: Path) -> None:
    store = StateStore(f"sqlite:///{tmp_path}/state.db")
    with LocalLog(tmp_path / "log.db") as log:
        log.append([encode(output(n)) for n in range(5)])  # of 1 January 2026
        loop = ConsumeLoop(log, store, diagnose, ConsumeSettings("monitor", ("student-outputs",)))
        while loop.step():
            pass
        loop.close()

    def compact(*options: str) -> str:
        result = CliRunner().invoke(store_app, ["--dir", str(tmp_path), *options])
        assert result.exit_code == 0, result.output
        return result.output

    assert "would forget 5 event ids and 0 buckets" in compact("--keep-days", "30", "--dry-run")
    assert len(store.known([output(n).identity for n in range(5)])) == 5
    assert "forgot 5 event ids and 0 buckets" in compact("--keep-days", "30")
    assert store.known([output(n).identity for n in range(5)]) == set()
    assert CliRunner().invoke(store_app, ["--dir", str(tmp_path), "--keep-days", "3"]).exit_code == 2


def test_answers_of_versions_that_were_never_made_are_told_apart(tmp_path: Path) -> None:
    """They were counted without a word."""
    store, config = StateStore(f"sqlite:///{tmp_path}/state.db"), load(None)
    event = Deployed(event_id="d", occurred_at=START, student="demo", version=1, action="promote")
    open_rounds(store).set_route("demo", 1, None, event)
    with LocalLog(tmp_path / "log.db") as log:
        versions = (1, 1, 1, 99, 99)
        log.append(
            [
                encode(output(n).model_copy(update={"student": "demo", "student_version": version}))
                for n, version in enumerate(versions)
            ]
        )
        loop = ConsumeLoop(log, store, diagnose, ConsumeSettings("monitor", ("student-outputs",)))
        while loop.step():
            pass
        loop.close()
    assert unknown_versions(store, open_rounds(store), "demo") == {99: 2}
    said = io.StringIO()
    show_status(config, tmp_path, Console(file=said, width=200))
    assert "versions that this loop has not made: 2 of version 99" in said.getvalue()
    served = {key: counts for key, counts in store.buckets().items() if key[1] == 1 and key.skill == ALL}
    assert sum(counts.needed for counts in served.values()) == 3
