"""Ten seeds of the randomized campaign: `python -m benchmarks.campaign`, the same as `make campaign`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from streams.testing.broker import HOW_TO_GET_ONE, find_home

SEEDS = 2
ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.kafka,
    pytest.mark.postgres,
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(find_home() is None, reason=f"no Kafka: {HOW_TO_GET_ONE}"),
]


@pytest.mark.parametrize("first", range(1, 11, SEEDS))
def test_whatever_happens_nothing_is_lost_and_nobody_stopped(first: int, tmp_path: Path) -> None:
    figures = tmp_path / "campaign.json"
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.campaign"]
    options = ["--seeds", str(SEEDS), "--first-seed", str(first), "--json", figures]
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, check=False)
    assert figures.exists(), f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    seeds = json.loads(figures.read_text())
    broken = [check for seed in seeds for check in seed["checks"] if not check["passed"]]
    assert not broken and len(seeds) == SEEDS and done.returncode == 0, f"{broken}\n{done.stderr[-2000:]}"
    assert all(seed["faults"] and seed["answers"] >= 400 for seed in seeds)
