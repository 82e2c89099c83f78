"""The loop's event types (contract 1).

Frozen pydantic models. Derived events have deterministic ids (`derived_id`), so a step that runs twice writes
the same event twice and the second one is dropped as known.
"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from agent.items import Frozen, JsonObject

_NAMESPACE = uuid.UUID("6f2f1f0e-5b0b-5d0a-9a53-0d9c5f0a7e11")
Text = Annotated[str, Field(max_length=1_048_576)]
# Names reach SQL, headers and file names: no control characters (PostgreSQL refuses NUL).
Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]
# What fits the store's columns: a larger number is an invalid event, not a database error in the loop.
Version = Annotated[int, Field(ge=1, le=2**31 - 1)]
Feedback = Literal["up", "down"]
AnswerVerdict = Literal["correct", "incorrect", "abstained"]
Bucket = Annotated[int, Field(ge=-(2**53), le=2**53)]
EventKey = tuple[str, str]
"""(student, event id): what names an event. Ids are unique per source, as in CloudEvents; the source is the
student."""


def derived_id(cause: str, step: str) -> str:
    """The id of the event that `step` derives from the event or thing `cause` (uuid5: the same inputs give
    the same id).

    >>> derived_id("a", "diagnose") == derived_id("a", "diagnose") != derived_id("b", "diagnose")
    True
    """
    return str(uuid.uuid5(_NAMESPACE, f"{len(cause)}:{cause}/{step}"))


def _utc(value: datetime) -> datetime:
    if value.tzinfo is None:
        raise ValueError(
            f"time {value.isoformat()} has no zone; write it as UTC, for example {value.isoformat()}Z"
        )
    if not value.utcoffset():
        return value  # the usual case, and cheaper than a conversion
    try:
        return value.astimezone(UTC)
    except OverflowError as exc:
        raise ValueError(f"time {value.isoformat()} is outside the years 1 to 9999 in UTC") from exc


Time = Annotated[datetime, AfterValidator(_utc)]


class Event(BaseModel):
    """What every event carries. `occurred_at` is event time (UTC), `causation_id` the event that led to this
    one."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    TYPE: ClassVar[str]
    TOPIC: ClassVar[str]
    VERSION: ClassVar[int] = 1  # of the schema; older ones are up-converted by the codec

    event_id: Name
    occurred_at: Time
    student: Name
    schema_version: Literal[1] = 1
    causation_id: str | None = None

    @property
    def key(self) -> str:
        """What keeps related events in one partition, in order."""
        return self.student

    @property
    def identity(self) -> EventKey:
        """What no other event has."""
        return self.student, self.event_id

    def derive(self, step: str) -> str:
        """The id of what `step` derives from this event."""
        return derived_id(f"{len(self.student)}:{self.student}/{self.event_id}", step)


class Served(Frozen):
    """How an answer was served: what the replica called itself, why it stopped, tokens and seconds.

    `sampling_rate` is the part of the answers that is captured: counts divided by it estimate the traffic.
    """

    response_id: Name
    model: Name
    finish_reason: str = Field(default="", max_length=100)
    prompt_tokens: int | None = Field(default=None, ge=0)
    completion_tokens: int | None = Field(default=None, ge=0)
    latency_s: float = Field(ge=0, allow_inf_nan=False)
    first_byte_s: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    sampling_rate: float = Field(default=1.0, gt=0, le=1)


class StudentOutput(Event):
    """One answer of a deployed student. `gold` and `feedback` are set where the application knows them,
    `served` where our gateway captured it."""

    TYPE: ClassVar[str] = "skillloop.student-output"
    TOPIC: ClassVar[str] = "student-outputs"

    student_version: Version
    session: str = Field(default="", max_length=200)
    question_id: str | None = None
    question: Text
    answer: Text
    gold: Text | None = None
    feedback: Feedback | None = None
    served: Served | None = None

    @property
    def key(self) -> str:
        """Student plus session: one student's traffic spreads over partitions."""
        return f"{self.student}/{self.session}"


class FeedbackGiven(Event):
    """What a user says of an answer (`causation_id`) that has gone to the log already; the profile does not
    count it."""

    TYPE: ClassVar[str] = "skillloop.feedback-given"
    TOPIC: ClassVar[str] = "feedback"

    student_version: Version
    session: str = Field(default="", max_length=200)
    response_id: Name
    feedback: Feedback


class Diagnosed(Event):
    """What the teacher found in one output (`causation_id`). Folding these gives the profile (contract 3).

    `missing` is a subset of `needed`; `discarded` counts labels outside it that were dropped. `verdict` is
    `abstained` where the teacher has nothing to say of a wrong answer, or nobody could judge it; `judged` is
    what the difficulty filters say. None: an event of before there was this field, whose abstention counts
    nowhere.
    """

    TYPE: ClassVar[str] = "skillloop.diagnosed"
    TOPIC: ClassVar[str] = "diagnoses"

    student_version: Version
    verdict: AnswerVerdict
    needed: tuple[Name, ...] = ()
    missing: tuple[Name, ...] = ()
    evidence: Text = ""
    discarded: int = Field(default=0, ge=0)
    decided_by: str
    teacher: str
    bucket: Bucket
    judged: Literal["correct", "incorrect", "undecided"] | None = None

    @property
    def key(self) -> str:
        """Student plus the answer: one student's diagnoses spread over partitions. Their order does not
        matter (contract 3)."""
        return f"{self.student}/{self.causation_id or self.event_id}"

    @property
    def is_monitors(self) -> bool:
        """Whether it is named as the monitor names its diagnosis of the answer `causation_id` (formerly by
        the answer's id alone)."""
        answer = self.causation_id or ""
        names = (answer, f"{len(self.student)}:{self.student}/{answer}")
        return self.event_id in [derived_id(name, "diagnose") for name in names]


class RoundChanged(Event):
    """A round reached a new state; `detail` is the part that the state adds to the round's record
    (`loop.workers.record`).

    `occurred_at` is the loop's clock when the state was reached, `as_of` the event time of the newest answer
    that the round's decision saw. None: an event of before there was this field, whose `occurred_at` is that
    time.
    """

    TYPE: ClassVar[str] = "skillloop.round-changed"
    TOPIC: ClassVar[str] = "rounds"

    round_id: Name
    state: Literal["planned", "curated", "trained", "judged", "promoted", "rejected", "failed"]
    detail: JsonObject = {}
    as_of: Time | None = None


class Deployed(Event):
    """Another version of the student is served from now on, recorded only after proof (contract 7).

    `occurred_at` is the loop's clock at the switch, `as_of` the event time of the newest answer that the
    decision to train saw (None for a person's switch, who is in `by`, with a `reason`). `previous` was served
    until now.
    """

    TYPE: ClassVar[str] = "skillloop.deployed"
    TOPIC: ClassVar[str] = "deployments"

    version: Version
    previous: Version | None = None
    round_id: str | None = None
    action: Literal["promote", "rollback"]
    as_of: Time | None = None
    by: str = Field(default="", max_length=200)
    reason: Text = ""


class Alert(Event):
    """Something has drifted: what a skill's answers miss, its share of the traffic, or the part of the
    answers that cannot be judged or explained (`skill` is then a pseudo-skill, `**undecided` or
    `**unexplained`). Or a version has become worse than its predecessor was and is rolled back
    (`regression`; `skill` is `*`, all answers).

    `statistic` and `threshold` are those of the test that raised the alarm, in nats, at `bucket`.
    """

    TYPE: ClassVar[str] = "skillloop.alert"
    TOPIC: ClassVar[str] = "alerts"

    student_version: Version
    skill: Name
    bucket: Bucket
    statistic: float = Field(allow_inf_nan=False)
    threshold: float = Field(allow_inf_nan=False)
    kind: Literal["miss rate", "traffic", "abstention", "regression"] = "miss rate"


EVENT_TYPES: tuple[type[Event], ...] = (
    StudentOutput,
    FeedbackGiven,
    Diagnosed,
    RoundChanged,
    Deployed,
    Alert,
)
