"""The crash test against a real Kafka and a real PostgreSQL, 20 seeds: `benchmarks/crash.py`, the same
command as `make crash`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from streams.testing.broker import HOW_TO_GET_ONE, find_home

SEEDS = 5
ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.kafka,
    pytest.mark.postgres,
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(find_home() is None, reason=f"no Kafka: {HOW_TO_GET_ONE}"),
]


@pytest.mark.parametrize("first", range(1, 21, SEEDS))
def test_nothing_is_lost_and_nothing_counted_twice(first: int, tmp_path: Path) -> None:
    figures = tmp_path / "crash.json"
    command = [
        sys.executable,
        "-m",
        "benchmarks.crash",
        "--seeds",
        str(SEEDS),
        "--first-seed",
        str(first),
        "--json",
        figures,
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert figures.exists(), done.stderr[-3000:]
    found = json.loads(figures.read_text())
    said = f"{found}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert found["seeds"] == SEEDS and found["events"] >= 2000 * SEEDS and found["kills"] >= 5 * SEEDS, said
    wrong = ("lost", "double_counted", "dlq_missing", "dlq_extra", "outbox_unsent", "runs_with_difference")
    assert {key: found[key] for key in wrong} == dict.fromkeys(wrong, 0) and done.returncode == 0, said
