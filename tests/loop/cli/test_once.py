"""`--once` on a real Kafka, by the installed command: it ends when what waited is read, and says how much."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from loop.backends import open_log, open_store
from loop.config import load
from loop.tasks.world.traffic import Traffic
from streams.codec import Codec, encode
from streams.events import Deployed, Diagnosed, StudentOutput
from streams.testing.broker import HOW_TO_GET_ONE, KafkaServer, find_home
from tests.warm import run_warm

SKILLLOOP = Path(sys.executable).parent / "skillloop"
START = datetime(2026, 1, 1, tzinfo=UTC)
CONFIG = """
[engine]
kind = "scripted"

[policy]
min_answers = 1000000

[log]
kind = "kafka"

[log.kafka]
bootstrap_servers = "{address}"
"""


@pytest.fixture(scope="module")
def broker() -> Iterator[KafkaServer]:
    if find_home() is None:
        pytest.skip(f"no Kafka: {HOW_TO_GET_ONE}")
    os.environ.setdefault("JAVA_TOOL_OPTIONS", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")
    with KafkaServer() as server:
        yield server
        server.kill()


class Run:
    """A run on the broker, by the command line."""

    def __init__(self, folder: Path, address: str) -> None:
        self.root, self.config_file = folder / "run", folder / "kafka.toml"
        self.config_file.write_text(CONFIG.format(address=address))
        self.config = load(self.config_file)
        self._given = 0

    def command(self, *words: str, expect: int = 0) -> CompletedProcess[str]:
        done = run_warm(SKILLLOOP, *words, "--config", self.config_file, "--dir", self.root)
        assert done.returncode == expect, (done.stdout, done.stderr)
        return done

    def answer(self, count: int) -> None:
        """Users ask, and the answers go into the log."""
        numbers = range(self._given, self._given + count)
        with open_log(self.config, self.root, None) as log:
            log.append([encode(output(number)) for number in numbers])
        self._given += count

    def read(self) -> int:
        store = open_store(self.config, self.root)
        answers = store.answers("demo")
        store.close()
        return answers

    def events(self, topic: str) -> Sequence[object]:
        with open_log(self.config, self.root, None) as log:
            return [Codec().decode(record) for record in log.read(topic)]

    def partitions(self, topic: str) -> int:
        with open_log(self.config, self.root, None) as log:
            return sum(end > 0 for end in log.end_offsets(topic).values())


def output(number: int) -> StudentOutput:
    question_id, problem = Traffic().question(number)
    return StudentOutput(
        event_id=f"e{number}",
        occurred_at=START + timedelta(seconds=number),
        student="demo",
        student_version=1,
        session=f"s{number % 20}",
        question_id=question_id,
        question=problem.question,
        answer="#### 0",
        gold=problem.answer,
    )


def test_a_dead_broker_is_one_line(tmp_path: Path) -> None:
    run = Run(tmp_path, "127.0.0.1:9")
    run.config_file.write_text(run.config_file.read_text() + "start_timeout_s = 2.0\n")
    told = run.command("topics", "list", expect=1).stderr.splitlines()
    assert len(told) == 1 and told[0].startswith("LogUnavailable: cannot connect: no answer from Kafka at"), (
        told
    )


@pytest.mark.kafka
@pytest.mark.slow
def test_once_ends_when_what_waited_is_read_and_says_how_much(broker: KafkaServer, tmp_path: Path) -> None:
    run = Run(tmp_path, broker.bootstrap)
    unwell = " ".join(run.command("doctor", expect=1).stdout.split())
    assert "FAIL event log: topic 'student-outputs' does not exist" in unwell
    run.command("topics", "create")
    run.answer(30)
    up = run.command("up", "--once")
    assert "30 records waited in student-outputs; this worker read 30: 30 events counted" in up.stdout
    assert run.read() == 30
    told = [json.loads(line) for line in up.stderr.splitlines()]
    assert [line["decision"] for line in told if line.get("event") == "decision"] == ["wait"]
    for batch in range(1, 3):
        run.answer(20)
        monitor = run.command("worker", "monitor", "--once")
        assert "20 records waited in student-outputs; this worker read 20" in monitor.stdout
        assert run.read() == 30 + 20 * batch
    assert "0 records waited" in run.command("worker", "monitor", "--once").stdout
    assert "waiting in the log: 0 student-outputs" in run.command("status").stdout
    diagnosed = run.events("diagnoses")
    assert len(diagnosed) == 70 and all(isinstance(event, Diagnosed) for event in diagnosed)
    assert run.partitions("diagnoses") == 8, "one student's diagnoses spread over all partitions"
    assert all(isinstance(event, Deployed) for event in run.events("deployments"))
