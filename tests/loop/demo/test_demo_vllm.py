"""The loop closed on a real vLLM and Kafka: users of the gateway are answered better after a round. Real
processes, the official client, gateway's capture, canary."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from loop.backends import open_log, open_store
from loop.config import load
from loop.demo.live import CONFIG
from loop.workers.record import open_rounds
from streams.codec import Codec
from streams.events import Deployed, StudentOutput
from streams.testing.broker import HOW_TO_GET_ONE, KafkaServer, find_home
from tests.conftest import PYTHON

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1800)]
pytest.importorskip("openai", reason="pip install 'skillloop[llm]'")


SKILLLOOP = Path(sys.executable).parent / "skillloop"


def test_users_are_answered_better_after_a_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not PYTHON.exists():
        pytest.skip("needs vLLM in .venv-vllm: make vllm-env")
    if find_home() is None:
        pytest.skip(f"no Kafka: {HOW_TO_GET_ONE}")
    root, figures = tmp_path / "run", tmp_path / "figures.json"
    with KafkaServer() as kafka:
        monkeypatch.setenv("SKILLLOOP_LOG__KIND", "kafka")
        monkeypatch.setenv("SKILLLOOP_LOG__KAFKA__BOOTSTRAP_SERVERS", kafka.bootstrap)
        subprocess.run([SKILLLOOP, "topics", "create", "--config", CONFIG], check=True, capture_output=True)
        command = [sys.executable, "-m", "loop.demo.live", "--dir", root, "--vllm", PYTHON, "--json", figures]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        config = load(CONFIG, os.environ)
        with open_log(config, root, None) as log:
            outputs = [Codec().decode(record) for record in log.read(StudentOutput.TOPIC)]
            switches = [Codec().decode(record) for record in log.read(Deployed.TOPIC)]
    told = json.loads(figures.read_text())
    right = {int(version): of[0] / of[1] for version, of in told["right_of_answers_by_version"].items()}
    champion = max(right)
    assert champion > 1 and right[champion] > right[1] + 0.1, told
    assert len(outputs) == told["questions"], "each answer that a user got is in the log, once"
    captured = Counter(event.student_version for event in outputs if isinstance(event, StudentOutput))
    assert captured[champion] >= told["right_of_answers_by_version"][str(champion)][1]
    assert champion in [event.version for event in switches if isinstance(event, Deployed)]
    promoted = [r for r in open_rounds(open_store(config, root)).list("demo") if r.state == "promoted"]
    assert promoted and all(r.record.trial and r.record.trial.outcome == "promote" for r in promoted)
