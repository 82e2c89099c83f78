"""`skillloop store compact` on the local store."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from loop.cli.store import store_app
from streams.codec import encode
from streams.consume import ConsumeLoop, ConsumeSettings
from streams.local_log import LocalLog
from streams.state.store import StateStore
from streams.testing.synthetic import diagnose, output


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
