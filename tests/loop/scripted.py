"""A loop of real workers in which student, teacher and trainer are the shipped fakes: what a version answers
is a function, so the true gain and harm of a round are known."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from agent.catalog import SkillCatalog
from agent.chance import rank
from agent.items import HeldOutItem, PoolItem
from graphs.teacher import Diagnosis, Solution
from graphs.testing.scripted import ScriptedTeacher
from loop.config import Config
from loop.embedded import Embedded
from loop.tasks.grading import grade_text
from loop.tasks.task import Task
from loop.wiring import open_services, set_up_student
from loop.workers.messages import Listener
from loop.workers.record import LoopRound, parse_record
from loop.workers.services import Ports, Services
from serving.scripted_engine import ScriptedEngine
from streams.clock import HandClock
from streams.codec import encode
from streams.events import StudentOutput
from streams.memory_log import MemoryLog
from streams.state import tables
from streams.state.held_out import reserved_row
from streams.state.rounds import RoundStore
from streams.state.store import StateStore
from training.testing.scripted_trainer import ScriptedTrainer

START = datetime(2026, 11, 1, tzinfo=UTC)
SKILLS = ("add", "gcd", "max")
CANDIDATE = 0
Knows = Callable[[int, str], float]
"""(version, skill) -> how often the version is right; the version that is judged is `CANDIDATE`."""


def ask(place: str, skill: str, number: int) -> str:
    """The `number`-th question of pool, traffic or held-out set about a skill; no two have the same
    numbers."""
    first = rank(0, place, skill, str(number)) % 10**9
    return f"{place}: {skill} of {first} and {number}?"


def answer_of(question: str) -> str:
    return str(sum(int(word.strip("?")) for word in question.split() if word.strip("?").isdigit()))


def skill_of(question: str) -> str:
    return next((skill for skill in SKILLS if f" {skill} of " in question), "")


def pool(skill: str, count: int) -> list[PoolItem]:
    asked = [ask("pool", skill, number) for number in range(count)]
    return [
        PoolItem(
            item_id=f"pool-{skill}-{number}",
            question=text,
            solution=answer_of(text),
            answer=answer_of(text),
            skills=(skill,),
        )
        for number, text in enumerate(asked)
    ]


def held_out(skill: str, count: int, stratum: str) -> list[HeldOutItem]:
    asked = [ask("exam", skill, number) for number in range(count)]
    return [
        HeldOutItem(
            item_id=f"exam-{skill}-{number}",
            question=text,
            answer=answer_of(text),
            skills=(skill,),
            stratum=stratum,
        )
        for number, text in enumerate(asked)
    ]


class NamingTeacher(ScriptedTeacher):
    """Labels a question with the skill in it; every answer that it is shown lacks that skill. New questions
    differ in their numbers, solutions are right."""

    def __init__(self) -> None:
        super().__init__(
            labels=_Named(),
            diagnoses=lambda question, answer, needed: Diagnosis(
                verdict="incorrect", missing=(skill_of(question),), evidence=answer
            ),
            writes=lambda skill, references, count, seed: [
                ask(f"new {seed % 9973}", skill, 1000 + number) for number in range(count)
            ],
            solves=lambda question, count, seed: [_solution(question, way) for way in range(count)],
        )


class _Named(dict[str, Sequence[str]]):
    def get(self, question: str, default: Any = None) -> Any:
        return (skill_of(question),) if skill_of(question) else ()


def _solution(question: str, way: int) -> Solution:
    return Solution(text=f"way {way}\n{answer_of(question)}", answer=answer_of(question))


@dataclass
class ScriptedLoop:
    """All workers on one store. `knows` says how good each version is; `shares` is the traffic."""

    root: Path
    config: Config
    knows: Knows
    pool: Sequence[PoolItem]
    held_out: Sequence[HeldOutItem]
    shares: Mapping[str, float] = field(default_factory=lambda: {"add": 0.7, "gcd": 0.3})
    gold: bool = True
    asked: int = 0

    def __post_init__(self) -> None:
        self.clock, self.log, self.trainer = HandClock(START), MemoryLog(), ScriptedTrainer()
        self.reinforcer, self.teacher = ScriptedTrainer(), NamingTeacher()
        base = self.root / "base"
        base.mkdir(parents=True, exist_ok=True)
        (base / "model.safetensors").write_bytes(b"base")
        self.services = self._open(base)
        set_up_student(self.services)
        self.services.load(1)
        self.workers = Embedded(self.services, self.log)

    def _open(self, base: Path) -> Services:
        task = Task(
            SkillCatalog.of(*((skill, "") for skill in SKILLS)),
            tuple(self.pool),
            tuple(self.held_out),
            lambda expected, answer: grade_text("", expected, answer),
            self.teacher,
            base,
        )
        store = StateStore(f"sqlite:///{self.root / 'state.db'}")
        engine = ScriptedEngine(lambda prompt, version, sample: self.drawn(version, prompt, sample))
        ports = Ports(
            store=store,
            task=task,
            engine=engine,
            trainer=self.trainer,
            reinforcer=self.reinforcer,
            clock=self.clock,
            owner="test",
        )
        opened = open_services(self.config, self.root, ports)
        return dataclasses.replace(opened, rounds=RoundStore(store, parse_record, self.clock))

    def drawn(self, version: int, question: str, sample: int) -> str:
        """One of several answers: here they are all the same."""
        return self.answer(version, question)

    def answer(self, version: int, question: str) -> str:
        """Right or wrong, always the same for a version and a question."""
        right = random.Random(question).random() < self.knows(version, skill_of(question))
        return answer_of(question) if right else "no idea"

    def serve(self, count: int) -> None:
        """So many questions are answered by the served version, and the monitor sees them."""
        version = self.version
        rng, events = random.Random(f"traffic {self.asked}"), []
        for number in range(self.asked, self.asked + count):
            (skill,) = rng.choices(list(self.shares), list(self.shares.values()))
            question = ask("user", skill, number)
            events.append(
                StudentOutput(
                    event_id=f"e{number}",
                    occurred_at=START + timedelta(seconds=number),
                    student=self.services.student,
                    student_version=version,
                    question=question,
                    answer=self.answer(version, question),
                    gold=answer_of(question) if self.gold else None,
                )
            )
        self.asked += count
        self.log.append([encode(event) for event in events])
        self.clock.sleep(count)
        self.settle()

    def settle(self) -> None:
        """Until nothing is left to do; waits of failed steps are wound over."""
        while True:
            while self.workers.step():
                pass
            if not self.workers.active():
                return
            self.clock.sleep(60)

    def listening(self, listen: Listener) -> Services:
        """The services with somebody who is told what happens."""
        return dataclasses.replace(self.services, listen=listen)

    def reserve(self, item: HeldOutItem) -> None:
        """A question comes in for the held-out set, as with a batch."""
        store = self.services.store
        row = reserved_row(self.services.student, item, "gold")
        with store.transaction() as connection:
            store.insert_new(tables.held_out_items, [row], connection)

    def restart(self) -> None:
        """New workers, as after an end."""
        self.workers.monitor.loop.close()
        self.workers = Embedded(self.services, self.log)

    @property
    def version(self) -> int:
        """The served version."""
        route = self.services.rounds.route(self.services.student)
        assert route is not None
        return route[0]

    @property
    def rounds(self) -> list[LoopRound]:
        return list(self.services.rounds.list(self.services.student))

    def serve_until(self, rounds: int, at_most: int) -> LoopRound:
        """Serve until the `rounds`-th round has ended."""
        for _ in range(0, at_most, 100):
            if len(self.rounds) >= rounds:
                break
            self.serve(100)
        return self.rounds[rounds - 1]
