"""A loop of a hundred skills through real workers over Kafka and PostgreSQL: `python -m benchmarks.hundred
--short`, the quick form of `make hundred`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from streams.testing.broker import HOW_TO_GET_ONE, find_home

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.kafka,
    pytest.mark.postgres,
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.timeout(2700),
    pytest.mark.skipif(find_home() is None, reason=f"no Kafka: {HOW_TO_GET_ONE}"),
]


def test_a_loop_of_a_hundred_skills(tmp_path: Path) -> None:
    figures = tmp_path / "hundred.json"
    command = [sys.executable, "-m", "benchmarks.hundred", "--short", "--json", figures]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert figures.exists(), f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    seen = json.loads(figures.read_text())
    failed = [row for row in seen["checks"] if not row["passed"]]
    assert not failed and done.returncode == 0, f"{failed}\n{done.stderr[-2000:]}"
