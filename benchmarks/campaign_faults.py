"""What befalls a seed of `benchmarks.campaign`. Each fault strikes at once; a thread ends what lasts."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random
from threading import Timer
from typing import TYPE_CHECKING

from kafka import KafkaAdminClient, KafkaProducer

from benchmarks.campaign_crew import CampaignCrew
from benchmarks.campaign_world import WorldBrain
from graphs.testing.faults import Order
from graphs.testing.server import TeacherServer
from streams.kafka.log import KafkaLog
from streams.kafka.settings import KafkaSettings
from streams.log import LogUnavailable
from streams.state.store import StateStore
from streams.testing.broker import KafkaServer
from streams.testing.synthetic import POISON, poison
from streams.topics import TOPICS

if TYPE_CHECKING:
    from benchmarks.campaign import Servers, Users

TOPIC = "student-outputs"
MARK = "campaign"
"""A header that names a poison record."""
BOMB_BYTES = 96 * 2**20
SHORT_S, LONG_S = 3.0, 8.0
"""How long a pause lasts: less, and more, than a consumer's session and a round's lease."""
UNPAID = ("429", "500", "drop", "garbage", "truncated", "off_list", "no_usage", "negative_usage", "drip")
CODECS = ("gzip", "snappy", "lz4", "zstd")


@dataclass
class Faults:
    """The faults that a seed has drawn, each with the number of answers after which it strikes."""

    crew: CampaignCrew
    servers: Servers
    users: Users
    store: StateStore
    teacher: TeacherServer
    dice: Random
    plan: list[tuple[int, str]]
    struck: list[str] = field(default_factory=list)
    lasting: list[Timer] = field(default_factory=list)
    bombs: int = 0
    letters_asked: int = 0

    @property
    def done(self) -> bool:
        """Whether everything has happened and is over."""
        return not self.plan and not any(timer.is_alive() for timer in self.lasting)

    def look(self) -> None:
        """Strike when the moment has come; what needs a broker that another fault holds up waits."""
        while self.plan and self.users.sent >= self.plan[0][0]:
            if self.plan[0][1] in NEED_THE_BROKER and not self._broker_answers():
                return
            _, name = self.plan.pop(0)
            self.struck.append(name)
            FAULTS[name](self)

    def _broker_answers(self) -> bool:
        try:
            return bool(self.users.log.end_offsets(TOPIC))
        except LogUnavailable:
            return False

    def end(self) -> None:
        """Wait until nothing lasts any more."""
        for timer in self.lasting:
            timer.join()

    def put_off(self, seconds: float, action: Callable[[], None]) -> None:
        """Do it later, whatever the campaign waits for then."""
        self.lasting.append(Timer(seconds, action))
        self.lasting[-1].start()

    def anybody(self, kind: str = "") -> str | None:
        """A worker that runs, drawn."""
        names = [name for name in self.crew.names() if name.startswith(kind)]
        return self.dice.choice(names) if names else None

    def lasts(self) -> float:
        return self.dice.choice((SHORT_S, LONG_S))


def kill(faults: Faults) -> None:
    """A worker's host dies."""
    if name := faults.anybody():
        faults.crew.kill(name)


def freeze(faults: Faults) -> None:
    """A worker stands still, then resumes, perhaps when its work is another's."""
    if name := faults.anybody():
        pid = faults.crew.pid(name)
        faults.crew.signal(name, signal.SIGSTOP)
        faults.put_off(faults.lasts(), lambda: _signal(pid, signal.SIGCONT))


def broker_pause(faults: Faults) -> None:
    """The broker stands still."""
    pid = faults.servers.kafka.pid
    os.kill(pid, signal.SIGSTOP)
    faults.put_off(faults.lasts(), lambda: _signal(pid, signal.SIGCONT))


def broker_restart(faults: Faults) -> None:
    """The broker dies and comes back with its data."""
    _restart(faults.servers.kafka)


def _restart(server: KafkaServer) -> None:
    server.kill()
    server.start()


def database_restart(faults: Faults) -> None:
    """PostgreSQL ends every connection and starts again."""
    faults.servers.stop_database()
    faults.put_off(faults.dice.choice((0.0, SHORT_S)), faults.servers.start_database)


def full_disk(faults: Faults) -> None:
    """A worker can write no file beyond 4 KiB (RLIMIT_FSIZE, which needs no privileges): its cache, its
    registry and its data sets are on a full disk."""
    if name := faults.anybody():
        pid = faults.crew.pid(name)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        everything = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        faults.put_off(faults.lasts(), lambda: _limit(pid, everything))


def _limit(pid: int, limits: tuple[int, int]) -> None:
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)


def topic_made_anew(faults: Faults) -> None:
    """Somebody deletes the topic with the answers and makes it anew, with all that nobody has read."""
    faults.users.remember_topic()
    make_anew(faults.servers.kafka.bootstrap, (TOPIC,))
    faults.users.reconnect()
    if faults.dice.random() < 2 / 3 and (name := faults.anybody("monitor")):
        faults.crew.kill(name)  # its successor sees it at once; the other one by itself


def clock_step(faults: Faults) -> None:
    """Somebody sets the clock of a worker's host, and sets it right again."""
    name = faults.anybody()
    if name:
        faults.crew.set_clock(name, faults.dice.choice((-3600, -120, 120, 3600)))
        faults.put_off(LONG_S, lambda: faults.crew.set_clock(name, 0))


def poison_records(faults: Faults) -> None:
    """Records that can never be processed."""
    kinds = [kind for kind in POISON if kind != "handler"]
    records = []
    for kind in faults.dice.sample(kinds, 4):
        record, name = (
            poison(kind, len(faults.users.poison), faults.users.seed),
            str(len(faults.users.poison)),
        )
        faults.users.poison.append(name)
        records.append(replace(record, headers=(*record.headers, (MARK, name.encode()))))
    faults.users.append(records)


def codec_mix(faults: Faults) -> None:
    """Answers from producers in every codec."""
    for codec in CODECS:
        faults.users.send(5, codec)


def bomb(faults: Faults) -> None:
    """A batch that unpacks to more than is taken."""
    with contextlib.closing(
        KafkaProducer(
            bootstrap_servers=faults.servers.kafka.bootstrap,
            compression_type="gzip",
            max_request_size=2**30,
            request_timeout_ms=30_000,
        )
    ) as producer:
        producer.send(TOPIC, bytes(BOMB_BYTES), partition=faults.dice.randrange(8)).get(60)
    faults.bombs += 1


def slow_teacher(faults: Faults) -> None:
    """Replies take longer."""
    faults.teacher.latency_s = 0.15
    faults.put_off(LONG_S, lambda: setattr(faults.teacher, "latency_s", 0.0))


def lying_teacher(faults: Faults) -> None:
    """Half of what the teacher finds is wrong, until the end."""
    faults.teacher.brain = WorldBrain(lies=0.5)


def failing_teacher(faults: Faults) -> None:
    """Errors, nonsense, no bills."""
    kinds = faults.dice.sample(UNPAID, 4)
    faults.teacher.order([Order.parse(f"{kind}:{faults.dice.randint(1, 12)}") for kind in kinds])


def two_students(faults: Faults) -> None:
    """Another student numbers its answers as ours does."""
    faults.users.twin = True


def redrive(faults: Faults) -> None:
    """Dead letters are sent again."""
    done = faults.crew.command("dlq", "redrive", *faults.dice.choice(((), ("--force",))))
    faults.letters_asked += done.returncode == 0


def _signal(pid: int, what: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, what)


FAULTS: dict[str, Callable[[Faults], None]] = {
    "kill": kill,
    "freeze": freeze,
    "broker pause": broker_pause,
    "broker restart": broker_restart,
    "database restart": database_restart,
    "full disk": full_disk,
    "topic made anew": topic_made_anew,
    "clock step": clock_step,
    "poison records": poison_records,
    "codec mix": codec_mix,
    "bomb": bomb,
    "slow teacher": slow_teacher,
    "lying teacher": lying_teacher,
    "failing teacher": failing_teacher,
    "two students": two_students,
    "redrive": redrive,
}


NEED_THE_BROKER = ("topic made anew", "bomb", "poison records", "codec mix")


def draw(dice: Random, answers: int, count: int) -> list[tuple[int, str]]:
    """So many faults, and after how many answers each strikes; a kill twice as often as others. The topic is
    made anew once at most."""
    names = [*FAULTS, "kill"]
    chosen: list[str] = []
    while len(chosen) < count:
        name = dice.choice(names)
        if name != "topic made anew" or name not in chosen:
            chosen.append(name)
    return sorted((dice.randrange(answers // 10, answers), name) for name in chosen)


def make_anew(bootstrap: str, topics: tuple[str, ...] = tuple(spec.name for spec in TOPICS)) -> None:
    """Delete topics, and make them as `skillloop topics create` does."""
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    try:
        known = sorted(set(topics) & set(admin.list_topics()))
        if known:
            admin.delete_topics(known, timeout_ms=30_000)
        while set(topics) & set(admin.list_topics()):
            time.sleep(0.1)
    finally:
        admin.close()
    wanted = [spec for spec in TOPICS if spec.name in topics]
    with KafkaLog(KafkaSettings(bootstrap_servers=bootstrap, start_timeout_s=60)) as log:
        log.create_topics(wanted)
