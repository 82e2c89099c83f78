from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

SKILLLOOP = Path(sys.executable).parent / "skillloop"
LIMIT_S = 0.7


def test_help_is_quick_and_loads_no_model_library() -> None:
    code = "import sys, loop.cli; sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'mlflow', 'langgraph', 'sqlalchemy')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        done = subprocess.run([SKILLLOOP, "--help"], capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - start)
    assert "demo" in done.stdout and "rollback" in done.stdout
    assert min(seconds) < LIMIT_S


@pytest.mark.parametrize(
    "command", ["demo", "up", "worker", "status", "profile", "rounds", "promote", "rollback", "doctor", "dlq", "topics", "ingest"]
)
def test_every_command_has_help(command: str) -> None:
    done = subprocess.run([SKILLLOOP, command, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def test_an_error_is_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    done = subprocess.run(
        [SKILLLOOP, "status", "--config", tmp_path / "none.toml", "--dir", tmp_path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "no configuration file" in done.stderr and "Traceback" not in done.stderr
