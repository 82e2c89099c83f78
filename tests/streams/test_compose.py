"""compose.yaml is valid, and its broker has the settings that the native one is tested with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import yaml

from streams.testing.broker import SHARED_PROPERTIES

FILE = Path(__file__).parents[2] / "compose.yaml"


def test_compose_is_valid() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(FILE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_composed_broker_is_set_as_the_tested_one() -> None:
    services = yaml.safe_load(FILE.read_text())["services"]
    composed = services["kafka"]["environment"]
    as_environment = {
        "KAFKA_" + name.upper().replace(".", "_"): value for name, value in SHARED_PROPERTIES.items()
    }
    assert {name: composed.get(name) for name in as_environment} == as_environment
    assert "healthcheck" in services["kafka"]


def test_every_worker_is_there() -> None:
    services = yaml.safe_load(FILE.read_text())["services"]
    for kind in ("monitor", "curate", "train", "deploy"):
        assert services[kind]["command"] == ["skillloop", "worker", kind]
