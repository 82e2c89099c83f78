"""Attacks: a supervisor stops a worker that waits for something. Real processes; ten seconds are allowed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from agent.budget import Usage
from agent.decision import Decision, SkillTarget
from agent.items import Example, Provenance
from graphs.curate.plan import CurationReport
from loop.workers.curate import DATASET
from loop.workers.decide import changed
from loop.workers.record import Curated, Opened, RoundParts, open_rounds
from serving.http import HttpServer
from serving.routes import Replica, RouteFile, RouteTable, Share
from serving.testing.replica import ScriptedReplica
from streams.state.rounds import Round
from streams.state.store import StateStore
from training.mix import write_dataset

ROOT = Path(__file__).parents[2]
COMMAND = Path(sys.executable).with_name("skillloop")
ALLOWED_S = 10.0
START_S = 150.0
NOW = datetime(2026, 1, 1, tzinfo=UTC)
WAITS = {
    "asleep": "time.sleep(100)",
    "in a pool whose threads wait": "list(pool.map(time.sleep, [100, 100]))",
    "in a pool, with errors caught": """
while True:
    try:
        list(pool.map(time.sleep, [100, 100]))
    except Exception:
        pass
""",
    "idle": "stop.event.wait(100)",
}
SLOW = """
import time
from loop.doors import TRAINERS


class Slow:
    def train(self, job, on_progress):
        for step in range(1, 1000):
            (job.out_dir / "step").write_text(str(step))
            on_progress(step, 1000, 1.0)
            time.sleep(0.5)


TRAINERS.add("slow", lambda section: Slow())
"""


@contextmanager
def started(command: list[str | Path], err: Path) -> Iterator[subprocess.Popen[bytes]]:
    with (
        err.open("wb") as file,
        subprocess.Popen(
            command, stdout=file, stderr=file, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}
        ) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def until(what: object, process: subprocess.Popen[bytes], err: Path) -> None:
    deadline = time.monotonic() + START_S
    while not what():  # type: ignore[operator]
        assert process.poll() is None and time.monotonic() < deadline, err.read_text()[-3000:]
        time.sleep(0.1)


def ends(process: subprocess.Popen[bytes], err: Path) -> None:
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert process.wait(ALLOWED_S) == 0, err.read_text()[-3000:]
    assert time.monotonic() - began < ALLOWED_S


@pytest.mark.parametrize("wait", WAITS)
def test_whatever_a_worker_waits_for_it_ends_in_time(tmp_path: Path, wait: str) -> None:
    script = tmp_path / "worker.py"
    body = "\n".join(f"    {line}" for line in WAITS[wait].splitlines())
    script.write_text(
        f"import time\nfrom concurrent.futures import ThreadPoolExecutor\nfrom loop.stopping import Stop\n"
        f"with Stop() as stop, ThreadPoolExecutor(2) as pool:\n    print('ready', flush=True)\n{body}\n"
    )
    err = tmp_path / "out"
    with started([sys.executable, script], err) as process:
        until(lambda: "ready" in err.read_text(), process, err)
        ends(process, err)


def config(folder: Path, text: str) -> Path:
    file = folder / "test.toml"
    file.write_text(text)
    return file


@pytest.mark.slow
def test_a_monitor_without_mlflow_says_what_it_waits_for_and_ends_in_time(tmp_path: Path) -> None:
    """It retried in silence for 98 s and more, and did not end."""
    file = config(tmp_path, '[registry.mlflow]\ntracking_uri = "http://127.0.0.1:9"\n')
    err = tmp_path / "err"
    command = [COMMAND, "worker", "monitor", "--dir", tmp_path / "run", "--config", file]
    with started(command, err) as process:
        until(lambda: "waiting, next attempt" in err.read_text(), process, err)
        assert "127.0.0.1:9" in err.read_text()
        ends(process, err)


@pytest.mark.slow
def test_a_user_whose_answer_is_under_way_gets_it_to_its_end(tmp_path: Path) -> None:
    """`skillloop gateway` drained; `skillloop up` cut its users off after 4 s."""
    run, err = tmp_path / "run", tmp_path / "err"
    replica = ScriptedReplica({"student-v1"}, latency_s=7.0)
    with HttpServer(replica, "127.0.0.1", 0) as server, ThreadPoolExecutor(1) as user:
        share = Share(version=1, model="student-v1")
        table = RouteTable(student="demo", shares=(share,), replicas=(Replica(url=server.url),))
        RouteFile(run).write(table)
        file = config(tmp_path, "[gateway]\nport = 0\n")
        with started([COMMAND, "up", "--dir", run, "--config", file], err) as process:
            until(lambda: "is served at" in err.read_text(), process, err)
            address = re.search(r"http://\S+/v1", err.read_text())
            assert address is not None
            question = {"model": "demo", "messages": [{"role": "user", "content": "2+2?"}]}
            asked = user.submit(httpx.post, f"{address[0]}/chat/completions", json=question, timeout=30)
            until(lambda: replica.bodies, process, err)
            process.send_signal(signal.SIGTERM)
            assert asked.result().status_code == 200
            assert process.wait(ALLOWED_S) == 0, err.read_text()[-3000:]


@pytest.mark.slow
def test_a_round_in_training_is_left_for_the_next_worker(tmp_path: Path) -> None:
    """It was trained to its end first: 67 s."""
    (tmp_path / "slow.py").write_text(SLOW)
    file = config(tmp_path, 'plugins = ["slow.py"]\n[train]\nkind = "slow"\n')
    run, err = tmp_path / "run", tmp_path / "err"
    options: list[str | Path] = ["--dir", run, "--config", file]
    subprocess.run([COMMAND, "worker", "deploy", "--once", *options], check=True, cwd=ROOT)
    store = StateStore(f"sqlite:///{run}/state.db")
    rounds, round_id = open_rounds(store), "demo-r001"
    examples = [
        Example(
            example_id=str(n),
            prompt=f"{n}?",
            completion=str(n),
            skills=("add",),
            provenance=Provenance(strategy="synthesize", skill="add", source_ids=()),
        )
        for n in range(8)
    ]
    manifest = write_dataset(run / "rounds" / round_id / Path(DATASET).name, examples)
    target = SkillTarget(skill="add", weight=1.0, examples=8, strategy="synthesize")
    decision = Decision(kind="synthesize", skills=(target,), examples=8, steps=1000, reasons=("test",))
    record = RoundParts(decision=decision, opened=Opened(champion=1, at=NOW, answers=0))
    round_ = Round(round_id, "demo", 1, "planned", None, record)
    rounds.open(round_, changed(round_, "planned", {}))
    claimed = rounds.claim("planned", "test", 60.0)
    assert claimed is not None
    report = CurationReport(requested={"add": 8}, accepted={"add": 8}, replay=0, dropped={}, usage=Usage())
    part = Curated(manifest=manifest, report=report)
    rounds.advance(claimed, "curated", record.plus(part), [])
    with started([COMMAND, "worker", "train", *options], err) as process:
        until(lambda: list(run.glob("rounds/*/sft/*/step")), process, err)
        ends(process, err)
    left = rounds.get(round_id)
    assert left is not None and (left.state, left.owner, left.failures) == ("curated", None, 0)
