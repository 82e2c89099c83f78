"""Diagnoses from outside keep the rules of our own: time, bucket and catalog."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from agent.catalog import SkillCatalog
from agent.profile import ALL, BucketKey, bucket_of
from loop.config import MonitorSection
from loop.workers.external import ExternalDiagnoses
from streams.clock import HandClock
from streams.events import Diagnosed
from streams.testing.synthetic import diagnosed, output

NOW = datetime(2026, 11, 25, 10, tzinfo=UTC)
SETTINGS = MonitorSection(source="diagnoses", bucket_s=60, future_tolerance_s=300)
HANDLER = ExternalDiagnoses(SkillCatalog.of(("add", ""), ("gcd", "")), SETTINGS, HandClock(NOW))
HERE = bucket_of(NOW.timestamp(), 60)


def event(**changes: Any) -> Diagnosed:
    values = {
        "student": "s",
        "student_version": 1,
        "occurred_at": NOW,
        "bucket": HERE,
        "needed": ("add",),
        "missing": (),
        "verdict": "correct",
    }
    return diagnosed(output(1)).model_copy(update=values | changes)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"occurred_at": datetime(2099, 1, 1, tzinfo=UTC)}, "lies in the future"),
        ({"occurred_at": datetime(9999, 12, 31, 23, tzinfo=UTC)}, "lies in the future"),
        ({"needed": ("add", "made-up")}, "does not have: 'made-up'"),
        ({"missing": ("gcd",)}, "did not need: gcd"),
        ({"needed": ("add", "add")}, "named twice"),
        ({"missing": ("add", "add")}, "named twice"),
    ],
)
def test_what_cannot_be_believed_is_refused_alone_and_with_its_reason(
    changes: dict[str, Any], why: str
) -> None:
    """One event of 2099 blinded the policy for good; skills of no catalog opened rounds."""
    effects = HANDLER([event(event_id="good"), event(event_id="bad", **changes)])
    assert set(effects.failed) == {("s", "bad")} and why in effects.failed["s", "bad"]
    assert effects.watermarks == {("s", 1): (1, NOW.timestamp())}
    assert {key.skill for key in effects.buckets} == {ALL, "add"}


@pytest.mark.parametrize("bucket", [-(2**53), 2**53, HERE + 7])
def test_the_bucket_is_that_of_the_events_time(bucket: int) -> None:
    """With `bucket = -2**53` every step of the policy raised OSError, also after a restart."""
    effects = HANDLER([event(bucket=bucket)])
    assert set(effects.buckets) == {BucketKey("s", 1, ALL, HERE), BucketKey("s", 1, "add", HERE)}


def test_a_clock_that_is_a_little_ahead_is_believed() -> None:
    assert not HANDLER([event(occurred_at=NOW + timedelta(seconds=299))]).failed


def test_other_events_are_refused_as_before() -> None:
    effects = HANDLER([output(1)])
    assert list(effects.failed.values()) == ["skillloop.student-output is not expected here"]
