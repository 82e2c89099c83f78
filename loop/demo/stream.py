"""The demo's users: they ask the deployed student question after question, and the answers go into the event
log."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from loop.config import Config
from loop.tasks.world.traffic import FIRST_SHIFT, SECOND_SHIFT, Phase, Traffic, drawn_drift
from loop.tasks.world.world import ORIGINAL
from loop.workers.services import Services
from serving.engine import Sampling
from streams.clock import HandClock
from streams.codec import Codec, encode
from streams.events import StudentOutput, derived_id
from streams.log import EventLog

START = datetime(2026, 1, 1, tzinfo=UTC)


def schedule(config: Config) -> tuple[Phase, ...]:
    """The original mixture, then two shifts to skills that the student lacks."""
    demo, shifts = config.demo, (FIRST_SHIFT, SECOND_SHIFT)
    if demo.drift == "drawn":
        first, second = drawn_drift(config.seed).shifts
        shifts = (ORIGINAL.shifted(first), ORIGINAL.shifted(second))
    return (
        Phase(0, ORIGINAL, "original"),
        Phase(demo.first_shift, shifts[0], "shift 1"),
        Phase(demo.second_shift, shifts[1], "shift 2"),
    )


class DemoStream:
    """Serves one tick of questions at a time. A tick's answers are appended in one transaction, so a crash
    repeats whole ticks.

    Event time is simulated: question `i` comes `i * seconds_between` after `START`; `clock` follows it.
    """

    def __init__(self, services: Services, log: EventLog, clock: HandClock) -> None:
        self._services = services
        self._log = log
        self._clock = clock
        self._demo = services.config.demo
        self._traffic = Traffic(services.config.seed, schedule(services.config))

    @property
    def position(self) -> int:
        """How many questions have been answered; read from the log, so that a restart resumes there."""
        return sum(self._log.end_offsets(StudentOutput.TOPIC).values())

    def phase(self) -> str:
        """The name of the traffic's phase."""
        return self._traffic.phase(self.position).name

    def wind(self) -> None:
        """Set the clock to the newest question's time."""
        self._clock.sleep((self._time(self.position) - self._clock.now()).total_seconds())

    def _time(self, index: int) -> datetime:
        return START + timedelta(seconds=index * self._demo.seconds_between)

    def step(self) -> int:
        """Answer the next tick with the version that is routed; the number of questions answered (0: the
        stream has ended)."""
        start = self.position
        indices = range(start, min(start + self._demo.tick, self._demo.questions))
        if not indices:
            return 0
        version = self._served_version()
        asked = [self._traffic.question(index) for index in indices]
        sampling = Sampling(max_new_tokens=self._services.config.student.max_new_tokens)
        answers = self._services.engine.generate(
            [problem.question for _, problem in asked], version, sampling
        )
        events = [
            StudentOutput(
                event_id=derived_id(f"{self._services.student}/{question_id}", "answer"),
                occurred_at=self._time(index),
                student=self._services.student,
                student_version=version,
                session=f"session-{index % 40}",
                question_id=question_id,
                question=problem.question,
                answer=answer[0],
                gold=problem.answer,
            )
            for index, (question_id, problem), answer in zip(indices, asked, answers, strict=True)
        ]
        self._services.crash("stream.before-append")
        self._log.append([encode(event) for event in events])
        self.wind()
        return len(events)

    def _served_version(self) -> int:
        """The routed version, loaded into the engine when it is not yet (after a restart)."""
        services = self._services
        route = services.rounds.route(services.student)
        version = route[0] if route else services.registry.champion().version
        services.load(version)
        return version


def served(log: EventLog) -> Iterator[StudentOutput]:
    """Every answer that was served, read back from the log, by time."""
    codec = Codec()
    events = [codec.decode(record) for record in log.read(StudentOutput.TOPIC)]
    yield from sorted(
        (event for event in events if isinstance(event, StudentOutput)), key=lambda event: event.occurred_at
    )
