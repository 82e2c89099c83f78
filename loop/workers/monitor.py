"""The monitor worker: student outputs in, diagnoses and profile out, one transaction a batch, then the
agent's own step (the teach graph)."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from agent.chance import rank
from graphs.chat.settings import callers
from graphs.filters.assess import Assessor
from graphs.filters.chain import FilterParts, Sample, StepRewards, filters
from graphs.monitor.diagnose import STOPS_THE_BATCH, MonitorContext
from graphs.teach.graph import build_teach, teach
from loop.config import ConfigError, MonitorSection
from loop.tasks.task import Task
from loop.workers.decide import Decider
from loop.workers.diagnose import DiagnoseHandler
from loop.workers.external import ExternalDiagnoses
from loop.workers.messages import Reading, Watched
from loop.workers.reserve import Reserve
from loop.workers.round import TRANSIENT
from loop.workers.services import Services
from serving.engine import EngineError, Sampling
from streams.backlog import Backlog
from streams.clock import SystemClock
from streams.consume import ConsumeLoop, ConsumeSettings, Handler
from streams.events import StudentOutput
from streams.log import EventLog, LogUnavailable
from streams.state.labels import StoredLabels
from streams.state.outbox import OutboxRelay
from streams.state.server_clock import judging_clock
from streams.state.store import StoreUnavailable
from streams.topics import MONITOR_GROUP
from training.errors import RegistryUnavailable

logger = logging.getLogger(__name__)


class MonitorWorker:
    """Consumes outputs, relays the outbox, takes the agent's step."""

    def __init__(self, services: Services, log: EventLog) -> None:
        task, settings = services.task, services.config.monitor
        folds = settings.source == "diagnoses"
        consume = ConsumeSettings(
            group=MONITOR_GROUP,
            topics=(settings.topic,),
            max_records=settings.max_records,
            max_attempts=settings.max_attempts,
            backoff_s=settings.backoff_s,
            transient=(*TRANSIENT, *STOPS_THE_BATCH),
            look_first=not folds,
        )
        self.reserve = Reserve(services.config, task, services.held_out, partial(taught_prompts, services))
        clock = judging_clock(services.store, services.clock)
        handler: Handler = ExternalDiagnoses(task.catalog, settings, clock)
        if not folds:
            labels = StoredLabels(services.store, task.catalog)
            context = MonitorContext(
                task.teacher,
                task.catalog,
                assessors(services),
                labels,
                constrain=settings.constrain,
                crash=services.crash,
            )
            handler = DiagnoseHandler(
                context,
                labels,
                settings,
                clock,
                callers(services.config.teacher.chat),
                book=not task.books_itself,
                reserve=self.reserve,
            )
        self.loop = ConsumeLoop(
            log, services.store, handler, consume, clock=SystemClock(), crash=services.crash
        )
        self.relay = OutboxRelay(services.store, log, services.crash)
        self.decider = Decider(
            services.config, services.store, services.rounds, task, services.clock, self.reserve.next_version
        )
        self._graph = build_teach()
        self._store, self._listen = services.store, services.listen

    def step(self) -> bool:
        """One batch, then the outbox, then the agent's step. True when something was consumed."""
        done = self.loop.step()
        self.send()
        standing = teach(self._graph, self.decider)
        if standing is not None:
            self._listen(Watched(standing))
        return done > 0

    def catch_up(self, backlog: Backlog) -> None:
        """Step until a backlog is in the store; dependencies that are away are waited for. Raises
        `BacklogStuck`."""
        total, done = backlog.left(self._store), False
        while not done:
            self.step()
            self._listen(Reading(total - backlog.left(self._store), total))
            done = backlog.done(self._store, self.loop.waiting)

    def send(self) -> None:
        """Empty the outbox; what cannot be sent now stays there for the next time."""
        try:
            self.relay.step()
        except (LogUnavailable, StoreUnavailable) as exc:
            logger.warning("the outbox waits: %s", exc)

    def pause(self, seconds: float) -> None:
        """Wait for a dependency that is away (real time, whatever clock the loop has)."""
        SystemClock().sleep(seconds)


def assessors(services: Services) -> tuple[Assessor, ...]:
    """See `chain_of`."""
    return chain_of(services.config.monitor, services.task, sampler(services))


def chain_of(settings: MonitorSection, task: Task, sample: Sample) -> tuple[Assessor, ...]:
    """The difficulty filters in order of trust. Raises `ConfigError` for one that is unknown or lacks its
    part."""
    parts = FilterParts(
        grade=lambda _, gold, answer: task.grade(gold, answer),
        sample=sample,
        rewards=None if settings.prm is None else _reward_model(settings.prm),
        samples=settings.samples,
        settings=settings,
    )
    try:
        return filters(settings.filters, parts)
    except ValueError as exc:
        raise ConfigError(f"monitor.filters: {exc}") from exc


def _reward_model(folder: Path) -> StepRewards:
    from serving.step_rewards import RewardModel  # noqa: PLC0415  (torch: only for those who use it)

    return RewardModel(folder)


def taught_prompts(services: Services) -> Iterator[str]:
    """The prompts on which versions of the student were trained, oldest first. Raises `DatasetError`,
    `ArtifactError`."""
    for round_ in services.rounds.list(services.student):
        if round_.state == "promoted":
            yield from (example.prompt for example in services.examples_of(round_))


def sampler(services: Services) -> Sample:
    """Samples the version that gave an output. The seed comes from the event: a batch done again draws the
    same answers."""
    config, loading = services.config, threading.Lock()

    def sample(output: StudentOutput, count: int) -> Sequence[str]:
        try:
            with loading:
                services.load(output.student_version)
        except RegistryUnavailable as exc:
            raise EngineError(f"version {output.student_version} cannot be loaded: {exc}") from exc
        seed = rank(config.seed, "consistency", output.event_id) % 2**31
        sampling = Sampling(config.student.max_new_tokens, config.monitor.temperature, count, seed)
        prompt = services.task.prompt(output.question)
        return services.engine.generate([prompt], output.student_version, sampling)[0]

    return sample
