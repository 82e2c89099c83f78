"""The policy's shell: reads the profile, the pools, the history and the budget from the store, asks the pure
policy, opens rounds. The teach graph (graphs/teach) calls its three steps."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime

from agent.budget import left
from agent.decision import Outcome, PolicyInput, PoolState, RoundRecord
from agent.drift import Alarm
from agent.items import JsonObject
from agent.policy import decide
from agent.profile import bucket_of
from agent.standing import Seen, Standing
from loop.config import Config
from loop.tasks.task import Task
from loop.workers.heldout import HeldOutSet
from loop.workers.record import LoopRound, LoopRounds, Opened, RoundParts, State, announced
from loop.workers.watch import ProfileWatch
from streams.clock import Clock, SystemClock
from streams.events import Alert, RoundChanged, derived_id
from streams.state.ledger import spent_on
from streams.state.reading import reading
from streams.state.rounds import ACTIVE, Round
from streams.state.store import StateStore
from streams.state.waits import wait_began, waits_since

logger = logging.getLogger(__name__)


class Decider:
    """Looks at one student and opens a round when the policy says so (`graphs.teach.graph.Agent`).
    Looking twice at the same evidence does nothing new.

    `next_version`: from the answers watched so far to the version of the held-out set for a round that opens
    now; None: look again.
    """

    def __init__(
        self,
        config: Config,
        store: StateStore,
        rounds: LoopRounds,
        task: Task,
        clock: Clock | None = None,
        next_version: Callable[[int], int | None] | None = None,
    ) -> None:
        self._config = config
        self._store = store
        self._rounds = rounds
        self._task = task
        self._clock = clock or SystemClock()
        self._watch = ProfileWatch(config, store, len(task.catalog.names))
        self._sizes = {skill: set(task.skill_map.items(skill)) for skill in task.catalog.names}
        self._announced: set[str] = set()
        self.held_out = HeldOutSet(config, store, task.held_out)
        self._next_version = next_version or (lambda answers: self.held_out.latest().version)
        shared = {
            "examples_per_step": config.train.batch_size,
            "replay_share": config.curate.replay.share,
            "min_held_out": config.gate.min_items,
        }
        self._policy = config.policy.model_copy(update=shared)

    def standing(self) -> Standing | None:
        """The profile, alarms and decision as of the newest answer; None before the first answer of the
        served version. For whoever only looks."""
        seen = self._see()
        return None if seen is None else self._decide(seen)[0]

    def look(self) -> Seen | None:
        """What is known of the served version, its new alarms published; None before its first answer."""
        seen = self._see()
        if seen is not None:
            self._publish_alarms(seen)
        return seen

    def decide(self, seen: Seen) -> Standing:
        """What the policy says of it."""
        standing, waited_since = self._decide(seen)
        since = standing.decision.waits_since
        if since is not None and since != waited_since:
            wait_began(self._store, seen.profile.student, seen.version, since)
        return standing

    def _decide(self, seen: Seen) -> tuple[Standing, int | None]:
        """That, and since when it waited before."""
        with reading(self._store):
            known = self._policy_input(seen)
        return Standing.of(seen, decide(known, self._policy)), known.waits_since

    def open(self, standing: Standing) -> None:
        """Open the round that was decided, unless another worker was first."""
        student = standing.profile.student
        number = self._rounds.next_number(student)
        round_id = f"{student}-r{number:03d}"
        held_out = self._next_version(standing.answers)
        if held_out is None:
            return
        opened = Opened(
            champion=standing.version,
            at=standing.as_of,
            answers=standing.answers,
            held_out=held_out,
            profile=standing.profile.skills,
        )
        record = RoundParts(decision=standing.decision, opened=opened)
        round_ = Round(round_id, student, number, "planned", None, record)
        event = changed(round_, "planned", announced(record.decision), self._clock.now())
        if self._rounds.open(round_, event):
            logger.info("round %s opened: %s", round_id, "; ".join(standing.decision.reasons[:1]))

    def _see(self) -> Seen | None:
        student = self._config.student.name
        with reading(self._store):
            route = self._rounds.route(student)
            marks = self._store.watermarks(student) if route else {}
            mark = marks.get(route[0]) if route else None
            if route is None or mark is None:
                return None
            bucket = bucket_of(mark[1], self._config.monitor.bucket_s)
            profile, drifts = self._watch.look(route[0], route[1], bucket)
        alarms = {a.skill: a for a in drifts if a.kind == "miss rate" and a.cleared is None}
        answers = sum(outputs for outputs, _ in marks.values())
        return Seen(route[0], datetime.fromtimestamp(mark[1], UTC), profile, alarms, drifts, answers)

    def _policy_input(self, seen: Seen) -> PolicyInput:
        profile = seen.profile
        rounds = self._rounds.list(profile.student)
        history = [round_record(round_) for round_ in rounds]
        used = {item for round_ in rounds if (made := round_.record.curated) for item in made.used}
        today = self._clock.now().date().isoformat()  # as the meters book it
        return PolicyInput(
            profile=profile,
            answers_watched=profile.answers,
            answers_total=seen.answers,
            pools={
                skill: PoolState(available=len(ids), used=len(ids & used))
                for skill, ids in self._sizes.items()
            },
            history=history,
            budget=left(self._config.budget, spent_on(self._store, profile.student, today), today),
            held_out=self.held_out.recent(),
            held_out_grows=self.held_out.grows,
            waits_since=waits_since(self._store, profile.student, seen.version),
        )

    def _sent_before(self, student: str, version: int, alarm: Alarm) -> bool:
        """Whether an alarm that an earlier version's answers raised was sent then. It was not when they were
        counted after the switch."""
        earlier = [known for known in self._store.watermarks(student) if known < version]
        ids = [alert_id(student, known, alarm, number) for known in earlier for number in range(3)]
        return bool(self._store.known([(student, event_id) for event_id in ids]))

    def _publish_alarms(self, seen: Seen) -> None:
        student, count = seen.profile.student, Counter[tuple[str, str]]()
        for alarm in seen.drifts:
            if not alarm.inherited:
                count[alarm.kind, alarm.skill] += 1
            event_id = alert_id(student, seen.version, alarm, count[alarm.kind, alarm.skill])
            if event_id in self._announced:
                continue
            if alarm.inherited and self._sent_before(student, seen.version, alarm):
                self._announced.add(event_id)
                continue
            ended = (alarm.bucket + 1) * self._config.monitor.bucket_s
            event = Alert(
                event_id=event_id,
                occurred_at=min(datetime.fromtimestamp(max(ended, 0), UTC), seen.as_of),
                student=student,
                student_version=seen.version,
                skill=alarm.skill,
                bucket=alarm.bucket,
                statistic=alarm.statistic,
                threshold=alarm.threshold,
                kind=alarm.kind,
            )
            if alarm.kind == "miss rate" and not self._store.known([event.identity]):
                self.held_out.drifted(alarm.skill)
            self._store.publish_once(event)
            self._announced.add(event_id)


def alert_id(student: str, version: int, alarm: Alarm, number: int) -> str:
    """The id of a version's `number`-th alarm of a series; 0: the one that it inherited."""
    return derived_id(f"{student}/{version}/{alarm.kind}/{alarm.skill}/{number}", "alert")


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
        reinforced=record.decision.reinforced,
    )
