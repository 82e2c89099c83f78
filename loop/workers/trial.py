"""A canary's trial: what is known of its answers and the champion's is read from the profile and from what
the gateways counted; `agent.canary` decides. Each look reads everything anew: a restart changes nothing."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from datetime import datetime
from typing import NamedTuple

from agent.canary import DIFFICULT, FAILED, SLOW, Arm, Canary, OutcomeEvidence, Regression
from agent.profile import ALL, Counts, bucket_of
from agent.trial import Outcomes, spread
from loop.workers.live import read_table
from loop.workers.record import LoopRound, Requests, Trial
from loop.workers.services import Services
from serving.routes import Activity, RouteTable, activities
from streams.events import Alert, derived_id

logger = logging.getLogger(__name__)

Arms = dict[Arm, dict[str, Counts]]


def look(services: Services, round_: LoopRound) -> Trial:
    """The trial of a round's version as it stands now."""
    settings, trial = services.config.canary, round_.record.trial
    now = services.clock.now()
    if trial is None:
        return Trial(began=now)
    trial = _counted(services, trial, now)
    canary = Canary(settings, round_.record.skills)
    for bucket, arms in sorted(_known(services, round_, trial, now).items()):
        for answer in spread(bucket, arms):
            canary.note(answer)
    verdict = canary.verdict(expired=(now - trial.began).total_seconds() >= settings.limit_s)
    judged = next(row.champion for row in verdict.comparisons if row.outcome == DIFFICULT)
    return trial.model_copy(
        update={
            "outcome": verdict.outcome,
            "reason": verdict.reason,
            "evidence": tuple(map(_told, verdict.comparisons)),
            "reference": judged[0] / judged[1] if judged[1] else None,
            "decided": None if verdict.outcome == "wait" else now,
        }
    )


def _told(row: OutcomeEvidence) -> str:
    champion, canary = (f"{bad} of {answers}" for bad, answers in (row.champion, row.canary))
    return (
        f"{row.outcome}: champion {champion}, canary {canary};"
        f" e-values: worse {row.worse:.3g}, not worse {row.not_worse:.3g}"
    )


def _known(services: Services, round_: LoopRound, trial: Trial, now: datetime) -> dict[int, Arms]:
    """What is known of both versions in each closed time bucket that began after the trial did: the champion
    has no answers there that the canary could not have had."""
    width = services.config.monitor.bucket_s
    first, open_ = bucket_of(trial.began.timestamp(), width) + 1, bucket_of(now.timestamp(), width)
    names = {ALL: DIFFICULT, **{skill: f"miss of {skill}" for skill in round_.record.skills}}
    record, known = round_.record, dict[int, Arms]()
    parent, version = record.need_trained().parent, record.need_judged().version
    versions: dict[Arm, int] = {"champion": parent, "canary": version}
    for arm, answered_by in versions.items():
        for key, counts in services.store.buckets(services.student, answered_by, first).items():
            if key.skill in names and key.bucket < open_:
                known.setdefault(key.bucket, {}).setdefault(arm, {})[names[key.skill]] = counts
    for bucket, requests in trial.requests.items():
        for arm, counted in requests.items():
            if first <= bucket < open_:
                known.setdefault(bucket, {}).setdefault(arm, {}).update(_outcomes(counted))
    return known


def _outcomes(counted: Requests) -> Outcomes:
    ended = counted.ended
    return {
        FAILED: Counts(ended, min(ended, counted.failed)),
        SLOW: Counts(ended, min(ended, counted.slow)),
    }


def _counted(services: Services, trial: Trial, now: datetime) -> Trial:
    """The trial with what the gateways have counted since the last look, in the bucket of now."""
    table = read_table(services)
    if table is None:
        return trial
    bucket = bucket_of(now.timestamp(), services.config.monitor.bucket_s)
    seen, requests = dict(trial.seen), dict(trial.requests)
    added = dict(requests.get(bucket, {}))
    for activity in activities(services.routes):
        counts = _by_arm(table, activity)
        for arm, counted in counts.items():
            # What a champion answered before the gateway was first seen is not the trial's.
            before = seen.get(activity.gateway, {}).get(arm, counted if arm == "champion" else Requests())
            added[arm] = added.get(arm, Requests()).plus(counted.since(before))
        seen[activity.gateway] = {**seen.get(activity.gateway, {}), **counts}
    if any(counted.ended for counted in added.values()):
        requests[bucket] = added
    return trial.model_copy(update={"seen": seen, "requests": requests})


def _by_arm(table: RouteTable, activity: Activity) -> dict[Arm, Requests]:
    arms: list[tuple[Arm, str]] = [("champion", table.shares[0].model)]
    arms += [("canary", share.model) for share in table.shares[1:2]]
    return {
        arm: Requests(
            ended=max(0, activity.requests.get(model, 0) - activity.in_flight.get(model, 0)),
            failed=activity.failures.get(model, 0),
            slow=activity.slow.get(model, 0),
        )
        for arm, model in arms
    }


class Decline(NamedTuple):
    """A promoted version that has become worse: what it goes back to, and the alert."""

    version: int
    to: int
    reason: str
    alert: Alert


def decline(services: Services) -> Decline | None:
    """Whether the served version, promoted after a trial, has become worse than its predecessor was."""
    settings, route = services.config.canary, services.rounds.route(services.student)
    version, previous = route or (0, None)
    if previous is None:
        return None
    trial = _trial_of(services, version, previous)
    if trial is None or trial.reference is None or trial.decided is None:
        return None
    detector = Regression(settings, trial.reference)
    for number, (bucket, bad) in enumerate(_judged_since(services, version, trial.decided)):
        if number >= settings.watch_answers:
            return None
        if detector.note(bad):
            reason = (
                f"after {number + 1} answers worse than its predecessor, of whose answers"
                f" {trial.reference:.1%} were difficult, by more than {settings.margin:.0%}"
            )
            return Decline(version, previous, reason, _alert(services, version, bucket, detector.total))
    return None


def _trial_of(services: Services, version: int, previous: int) -> Trial | None:
    for round_ in reversed(services.rounds.list(services.student)):
        record = round_.record
        if round_.state == "promoted" and record.judged is not None and record.judged.version == version:
            return record.trial if record.need_trained().parent == previous else None
    return None


def _judged_since(services: Services, version: int, decided: datetime) -> Iterator[tuple[int, bool]]:
    width = services.config.monitor.bucket_s
    first = bucket_of(decided.timestamp(), width) + 1
    open_ = bucket_of(services.clock.now().timestamp(), width)
    table = services.store.buckets(services.student, version, first)
    for key in sorted(key for key in table if key.skill == ALL and key.bucket < open_):
        for answer in spread(key.bucket, {"canary": {DIFFICULT: table[key]}}):
            yield key.bucket, answer.bad[DIFFICULT]


def _alert(services: Services, version: int, bucket: int, total: float) -> Alert:
    return Alert(
        event_id=derived_id(f"{services.student}/{version}/regression", "alert"),
        occurred_at=services.clock.now(),
        student=services.student,
        student_version=version,
        skill=ALL,
        bucket=bucket,
        statistic=math.log(total),
        threshold=math.log(services.config.canary.run_length),
        kind="regression",
    )
