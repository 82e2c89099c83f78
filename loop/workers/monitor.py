"""The monitor worker: student outputs in, diagnoses and profile out, one transaction a batch, then the
policy."""

from __future__ import annotations

import logging

from graphs.chat.settings import callers
from graphs.filters.assess import Assessor
from graphs.filters.chain import FilterParts, filters
from graphs.monitor.graph import STOPS_THE_BATCH, MonitorContext
from loop.config import Config, ConfigError
from loop.tasks.task import Task
from loop.workers.decide import Decider
from loop.workers.diagnose import DiagnoseHandler
from loop.workers.folding import fold_handler
from loop.workers.messages import Watched
from loop.workers.round import TRANSIENT
from loop.workers.services import Services
from serving.step_rewards import RewardModel
from streams.clock import SystemClock
from streams.consume import ConsumeLoop, ConsumeSettings, Handler
from streams.log import EventLog, LogUnavailable
from streams.state.labels import StoredLabels
from streams.state.outbox import OutboxRelay
from streams.state.store import StoreUnavailable

logger = logging.getLogger(__name__)
GROUP = "monitor"


class MonitorWorker:
    """Consumes outputs, relays the outbox, asks the policy."""

    def __init__(self, services: Services, log: EventLog) -> None:
        task, settings = services.task, services.config.monitor
        folds = settings.source == "diagnoses"
        consume = ConsumeSettings(
            group=GROUP,
            topics=("diagnoses",) if folds else ("student-outputs",),
            max_records=settings.max_records,
            max_attempts=settings.max_attempts,
            backoff_s=settings.backoff_s,
            transient=(*TRANSIENT, *STOPS_THE_BATCH),
            look_first=not folds,
        )
        handler: Handler = fold_handler
        if not folds:
            labels = StoredLabels(services.store, task.catalog)
            context = MonitorContext(
                task.teacher, task.catalog, assessors(services.config, task), labels, crash=services.crash
            )
            threads = callers(services.config.teacher.chat)
            handler = DiagnoseHandler(
                context, labels, settings, services.clock, threads, book=not task.books_itself
            )
        self.loop = ConsumeLoop(
            log, services.store, handler, consume, clock=SystemClock(), crash=services.crash
        )
        self.relay = OutboxRelay(services.store, log, services.crash)
        self.decider = Decider(services.config, services.store, services.rounds, task)
        self._listen = services.listen

    def step(self) -> bool:
        """One batch, then the outbox, then the policy. True when something was consumed."""
        done = self.loop.step()
        self.send()
        standing = self.decider.step()
        if standing is not None:
            self._listen(Watched(standing))
        return done > 0

    def send(self) -> None:
        """Empty the outbox; what cannot be sent now stays there for the next time."""
        try:
            self.relay.step()
        except (LogUnavailable, StoreUnavailable) as exc:
            logger.warning("the outbox waits: %s", exc)

    def pause(self, seconds: float) -> None:
        """Wait for a dependency that is away (real time, whatever clock the loop has)."""
        SystemClock().sleep(seconds)


def assessors(config: Config, task: Task) -> tuple[Assessor, ...]:
    """The difficulty filters in order of trust. Raises `ConfigError` for one that is unknown or lacks its
    part."""
    prm = config.monitor.prm
    parts = FilterParts(
        grade=lambda _, gold, answer: task.grade(gold, answer),
        rewards=None if prm is None else RewardModel(prm),
    )
    try:
        return filters(config.monitor.filters, parts)
    except ValueError as exc:
        raise ConfigError(f"monitor.filters: {exc}") from exc
