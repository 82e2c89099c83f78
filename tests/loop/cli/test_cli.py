from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.warm import run_warm

SKILLLOOP = Path(sys.executable).parent / "skillloop"
LIMIT_S = 0.7


def test_help_is_quick_and_loads_no_model_library() -> None:
    code = (
        "import sys, loop.cli.main; sys.exit(any(m in sys.modules "
        "for m in ('torch', 'transformers', 'mlflow', 'langgraph', 'sqlalchemy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    seconds = []
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([SKILLLOOP, "--help"], capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert "demo" in done.stdout and "rollback" in done.stdout
    assert min(seconds) < LIMIT_S  # processor time: what the command costs, whatever else the machine does


@pytest.mark.parametrize(
    "command",
    [
        "demo",
        "up",
        "worker",
        "status",
        "profile",
        "rounds",
        "promote",
        "rollback",
        "doctor",
        "dlq",
        "topics",
        "ingest",
        "gateway",
    ],
)
def test_every_command_has_help(command: str) -> None:
    done = subprocess.run([SKILLLOOP, command, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def test_an_error_is_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    done = run_warm(SKILLLOOP, "status", "--config", tmp_path / "none.toml", "--dir", tmp_path)
    assert done.returncode == 1
    assert "no configuration file" in done.stderr and "Traceback" not in done.stderr
