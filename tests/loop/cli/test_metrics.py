"""`skillloop metrics`: what Prometheus reads is what `status` says."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from loop.cli.metrics import RunCollector
from loop.config import load
from loop.shipped import ROOT
from serving.routes import Activity, report
from tests.warm import run_warm

SKILLLOOP = Path(sys.executable).parent / "skillloop"


def figures(text: str) -> dict[tuple[str, ...], float]:
    return {
        (sample.name.removeprefix("skillloop_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.mark.slow
def test_a_scrape_says_what_status_says(reference: Any) -> None:
    command = [SKILLLOOP, "metrics", "--port", "0", "--config", reference.config, "--dir", reference.root]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = re.search(r"http\S+/metrics", process.stdout.readline())
            assert address is not None
            seen = figures(httpx.get(address[0], timeout=60).text)
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    status = reference.command("status").stdout
    version, waits, letters, unsent = (
        int(re.findall(pattern, status)[0])
        for pattern in (r"serving version (\d+)", r"log: (\d+)", r"letters: (\d+)", r"outbox: (\d+)")
    )
    assert seen["served_version",] == version and seen["outbox_unsent",] == unsent
    assert seen["lag_records", "student-outputs"] == waits
    assert seen["dead_letters", "student-outputs.dlq"] + seen["dead_letters", "diagnoses.dlq"] == letters
    promoted = [row for row in reference.figures()["rounds"] if row["promoted"]]
    assert seen["rounds", "promoted"] == len(promoted)
    assert all(seen["readable", source] == 1 for source in ("store", "log", "gateways"))


def test_a_dependency_that_is_away_fails_no_scrape(tmp_path: Path) -> None:
    """Nothing is there but a gateway's word; looking makes nothing."""
    report(tmp_path, Activity(gateway="g1", at=2e9, requests={"v2": 5}, captured={"lost": 3}))
    before = sorted(tmp_path.rglob("*"))
    collected = RunCollector(load(ROOT / "configs/demo.toml", {}), tmp_path).collect()
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for metric in collected
        for sample in metric.samples
    }
    assert samples["skillloop_readable", "store"] == samples["skillloop_readable", "log"] == 0
    assert samples["skillloop_gateway_captured", "g1", "lost"] == 3
    assert samples["skillloop_gateway_requests", "g1", "v2"] == 5
    assert sorted(tmp_path.rglob("*")) == before


def test_a_port_that_is_taken_is_said(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_warm(SKILLLOOP, "metrics", "--port", port, "--dir", tmp_path)
    assert done.returncode == 1 and f"cannot listen on 127.0.0.1:{port}" in done.stderr
