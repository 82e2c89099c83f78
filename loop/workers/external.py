"""Diagnoses of a teacher outside this program (`monitor.source = "diagnoses"`): the rules that our own
diagnoses keep, before they count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from agent.catalog import SkillCatalog
from agent.profile import bucket_of
from loop.config import MonitorSection
from streams.clock import Clock
from streams.consume import Effects
from streams.events import Diagnosed, Event, EventKey
from streams.folding import fold_handler

EventT = TypeVar("EventT", bound=Event)


class ExternalDiagnoses:
    """A handler that folds `Diagnosed` events straight into the store's profile.

    What cannot be believed is refused, event by event, and becomes a dead letter with the reason: a time in
    the future, skills that the catalog does not have (extend the catalog and redrive them), missing skills
    that were not needed, skills named twice. The bucket is the one of the event's time, whatever the event
    says.
    """

    def __init__(self, catalog: SkillCatalog, settings: MonitorSection, clock: Clock) -> None:
        self._skills = frozenset(catalog.names)
        self._settings = settings
        self._clock = clock

    def __call__(self, events: Sequence[Event]) -> Effects:
        horizon = self._clock.now().timestamp() + self._settings.future_tolerance_s
        failed: dict[EventKey, str] = {}
        kept: list[Event] = []
        for event in events:
            why = self._refusal(event, horizon) if isinstance(event, Diagnosed) else None
            if why is not None:
                failed[event.identity] = why
            else:
                kept.append(in_its_bucket(event, self._settings.bucket_s))
        return fold_handler(kept) + Effects(failed=failed)

    def _refusal(self, event: Diagnosed, horizon: float) -> str | None:
        if event.occurred_at.timestamp() > horizon:
            return f"occurred_at {event.occurred_at.isoformat()} lies in the future"
        needed, missing = set(event.needed), set(event.missing)
        if unknown := sorted((needed | missing) - self._skills):
            return f"skills that the catalog does not have: {', '.join(map(repr, unknown))}"
        if not missing <= needed:
            return f"missing skills that the answer did not need: {', '.join(sorted(missing - needed))}"
        if len(needed) + len(missing) < len(event.needed) + len(event.missing):
            return "a skill is named twice in needed or in missing"
        return None


def in_its_bucket(event: EventT, bucket_s: int) -> EventT:
    """The event with the bucket of its time, where it has one."""
    if not isinstance(event, Diagnosed):
        return event
    bucket = bucket_of(event.occurred_at.timestamp(), bucket_s)
    return event if event.bucket == bucket else event.model_copy(update={"bucket": bucket})
