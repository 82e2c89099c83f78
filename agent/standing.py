"""What the agent knows of the served version at one moment of event time, and what it decides to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from agent.decision import Decision
from agent.drift import Alarm
from agent.posterior import Profile


@dataclass(frozen=True)
class Seen:
    """The served version's profile and alarms. `answers` of the student were watched, of all versions: the
    policy's clock.

    `alarms` are the skills that have drifted and not come back; `drifts` every alarm of this version, also of
    its traffic and of abstentions, also those that have ended.
    """

    version: int
    as_of: datetime
    profile: Profile
    alarms: Mapping[str, Alarm]
    drifts: tuple[Alarm, ...]
    answers: int


@dataclass(frozen=True)
class Standing(Seen):
    """What was seen, with the policy's decision."""

    decision: Decision

    @classmethod
    def of(cls, seen: Seen, decision: Decision) -> Standing:
        """What was seen and then decided."""
        return cls(seen.version, seen.as_of, seen.profile, seen.alarms, seen.drifts, seen.answers, decision)
