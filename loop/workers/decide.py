"""The policy's shell: reads the profile, the pools, the history and the budget from the store, asks the pure
policy, opens rounds."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime

from agent.budget import left
from agent.decision import Decision, Outcome, PolicyInput, PoolState, RoundRecord
from agent.drift import Alarm
from agent.items import JsonObject
from agent.policy import decide
from agent.posterior import Profile
from agent.profile import bucket_of
from loop.config import Config
from loop.tasks.task import Task
from loop.workers.record import LoopRound, LoopRounds, Opened, RoundParts, State, announced
from loop.workers.watch import ProfileWatch
from streams.clock import Clock, SystemClock
from streams.events import Alert, RoundChanged, derived_id
from streams.state.ledger import spent_on
from streams.state.rounds import ACTIVE, Round
from streams.state.store import StateStore

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Standing:
    """What is known of the served version at one moment of event time."""

    version: int
    as_of: datetime
    profile: Profile
    alarms: dict[str, Alarm]
    """The skills that have drifted and not come back."""
    drifts: tuple[Alarm, ...]
    """Every alarm of this version, also of its traffic and of abstentions, also those that have ended."""
    decision: Decision


class Decider:
    """Looks at one student and opens a round when the policy says so. Looking twice at the same evidence does
    nothing new."""

    def __init__(
        self, config: Config, store: StateStore, rounds: LoopRounds, task: Task, clock: Clock | None = None
    ) -> None:
        self._config = config
        self._store = store
        self._rounds = rounds
        self._task = task
        self._clock = clock or SystemClock()
        self._watch = ProfileWatch(config, store, len(task.catalog.names))
        self._sizes = {skill: set(task.skill_map.items(skill)) for skill in task.catalog.names}
        self._announced: set[str] = set()
        self._held_out = Counter(skill for item in task.held_out for skill in set(item.skills))
        shared = {
            "examples_per_step": config.train.batch_size,
            "replay_share": config.curate.replay.share,
            "min_held_out": config.gate.min_items,
        }
        self._policy = config.policy.model_copy(update=shared)

    def standing(self) -> Standing | None:
        """The profile, alarms and decision as of the newest answer; None before the first answer of the
        served version."""
        student = self._config.student.name
        route = self._rounds.route(student)
        mark = self._store.watermark(student, route[0]) if route else None
        if route is None or mark is None:
            return None
        bucket = bucket_of(mark[1], self._config.monitor.bucket_s)
        profile, drifts = self._watch.look(route[0], route[1], bucket)
        alarms = {a.skill: a for a in drifts if a.kind == "miss rate" and a.cleared is None}
        as_of = datetime.fromtimestamp(mark[1], UTC)
        decision = decide(self._policy_input(profile), self._policy)
        return Standing(route[0], as_of, profile, alarms, drifts, decision)

    def step(self) -> Standing | None:
        """Publish new alarms and open the round that the policy wants; returns what it saw."""
        standing = self.standing()
        if standing is not None:
            self._publish_alarms(standing)
            if standing.decision.kind != "wait":
                self._open(standing)
        return standing

    def _policy_input(self, profile: Profile) -> PolicyInput:
        rounds = self._rounds.list(profile.student)
        history = [round_record(round_) for round_ in rounds]
        used = {item for round_ in rounds if (made := round_.record.curated) for item in made.used}
        today = self._clock.now().date().isoformat()  # as the meters book it
        return PolicyInput(
            profile=profile,
            answers_watched=profile.answers,
            answers_total=self._store.answers(profile.student),
            pools={
                skill: PoolState(available=len(ids), used=len(ids & used))
                for skill, ids in self._sizes.items()
            },
            history=history,
            budget=left(self._config.budget, spent_on(self._store, profile.student, today), today),
            held_out=self._held_out,
        )

    def _publish_alarms(self, standing: Standing) -> None:
        student = standing.profile.student
        for alarm in standing.drifts:
            cause = f"{student}/{standing.version}/{alarm.kind}/{alarm.skill}/{alarm.bucket}"
            event_id = derived_id(cause, "alert")
            if event_id in self._announced:
                continue
            ended = (alarm.bucket + 1) * self._config.monitor.bucket_s
            event = Alert(
                event_id=event_id,
                occurred_at=min(datetime.fromtimestamp(max(ended, 0), UTC), standing.as_of),
                student=student,
                student_version=standing.version,
                skill=alarm.skill,
                bucket=alarm.bucket,
                statistic=alarm.statistic,
                threshold=alarm.threshold,
                kind=alarm.kind,
            )
            self._store.publish_once(event)
            self._announced.add(event_id)

    def _open(self, standing: Standing) -> None:
        student = standing.profile.student
        number = self._rounds.next_number(student)
        round_id = f"{student}-r{number:03d}"
        opened = Opened(
            champion=standing.version,
            at=standing.as_of,
            answers=self._store.answers(student),
            profile=standing.profile.skills,
        )
        record = RoundParts(decision=standing.decision, opened=opened)
        round_ = Round(round_id, student, number, "planned", None, record)
        event = changed(round_, "planned", announced(record.decision), self._clock.now())
        if self._rounds.open(round_, event):
            logger.info("round %s opened: %s", round_id, "; ".join(standing.decision.reasons[:1]))


def changed(round_: LoopRound, state: State, detail: JsonObject, now: datetime | None = None) -> RoundChanged:
    """The event that a round reached `state` now (None: when it was decided). Only the transaction that moves
    the round publishes it, so it is written once."""
    return RoundChanged(
        event_id=derived_id(round_.round_id, state),
        occurred_at=now or round_.record.opened.at,
        as_of=round_.record.opened.at,
        student=round_.student,
        round_id=round_.round_id,
        state=state,
        detail=detail,
    )


def round_record(round_: LoopRound) -> RoundRecord:
    """A round as the policy sees it."""
    record, ended = round_.record, round_.record.ended
    outcome: Outcome = "active" if round_.state in ACTIVE else round_.state  # type: ignore[assignment]
    return RoundRecord(
        round_id=round_.round_id,
        kind=record.decision.kind,
        skills=record.skills,
        outcome=outcome,
        decided_at_answers=ended.answers if ended else record.opened.answers,
        gains=record.judged.gains if record.judged else {},
        steps=record.decision.steps,
        strategies={target.skill: target.strategy for target in record.decision.skills},
        error=ended.error if ended else "",
    )
