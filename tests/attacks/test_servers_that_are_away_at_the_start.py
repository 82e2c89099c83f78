"""Attacks: a worker is started while the event log cannot be reached, and while it answers no look-up yet."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMAND = Path(sys.executable).with_name("skillloop")
PLUGIN = """
import signal
from loop.backends import LOGS
from streams.local_log import LocalLog
from streams.log import LogUnavailable

calls = []


class SlowToCome(LocalLog):
    def __init__(self, path):
        calls.append("open")
        if calls.count("open") == 1:
            raise LogUnavailable("the log is away")
        super().__init__(path)

    def consumer(self, *args):
        calls.append("join")
        if calls.count("join") == 1:
            raise LogUnavailable("the log does not answer")
        signal.raise_signal(signal.SIGTERM)
        return super().consumer(*args)


LOGS.add("slow", lambda section, root, instance: SlowToCome(root / "log.db"))
"""


@pytest.mark.slow
def test_a_monitor_waits_for_the_log_and_says_so(tmp_path: Path) -> None:
    """It ended with status 1 when the log did not answer its first look-up."""
    (tmp_path / "slow.py").write_text(PLUGIN)
    file = tmp_path / "test.toml"
    file.write_text('plugins = ["slow.py"]\n[log]\nkind = "slow"\n')
    options = ["--dir", tmp_path / "run", "--config", file]
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([COMMAND, "worker", "deploy", "--once", *options], check=True, env=environ)
    done = subprocess.run(
        [COMMAND, "worker", "monitor", *options], env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for said in ("the log is away", "the log does not answer"):
        assert f"waiting, next attempt in 5 s: {said}" in done.stderr
