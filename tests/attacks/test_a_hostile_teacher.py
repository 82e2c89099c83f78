"""Attacks by the teacher's server: endless pauses, a reply that drips, no bill, a redirect."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import pytest

from agent.budget import LedgerEntry, Price
from graphs.chat.meter import Meter
from graphs.chat.settings import ChatSettings
from graphs.chat.teacher import ChatTeacher
from graphs.teacher import TeacherExhausted, TeacherMisconfigured, TeacherUnavailable
from graphs.testing.faults import Order
from graphs.testing.server import TeacherServer
from streams.clock import HandClock

SKILLS = ("addition", "maximum")
PRICE = Price(prompt_usd_per_mtok=1.0, completion_usd_per_mtok=1000.0)


def teacher(server: TeacherServer, **more: Any) -> ChatTeacher:
    known: dict[str, Any] = {"base_url": server.base_url, "model": "scripted", "price": Price(free=True)}
    settings = ChatSettings(**{**known, "timeout_s": 1.0, "backoff_s": 0.01, "max_backoff_s": 1.0, **more})
    return ChatTeacher.connect(settings)


@pytest.mark.parametrize(
    "pause", ["86400", "inf", "nan", "1e400", "Fri, 31 Dec 9999 23:59:59 GMT", "-5", "soon"]
)
def test_no_pause_that_a_server_asks_for_holds_anybody_up(pause: str) -> None:
    with TeacherServer(faults=[Order("429")], retry_after_s=pause) as server, teacher(server) as asked:
        began = time.monotonic()
        try:
            assert asked.label("q", SKILLS).skills
        except TeacherExhausted:
            assert asked.label("another", SKILLS).skills, "the pause was not taken over for everybody"
        assert time.monotonic() - began < 5


def test_a_reply_that_drips_is_given_up_after_the_time_limit() -> None:
    faults = [Order("drip", None)]
    with TeacherServer(faults=faults) as server, teacher(server, timeout_s=0.5, max_attempts=2) as asked:
        began = time.monotonic()
        with pytest.raises(TeacherUnavailable):
            asked.label("q", SKILLS)
        assert 1.0 <= time.monotonic() - began < 5


@pytest.mark.parametrize("fault", ["no_usage", "negative_usage"])
def test_a_call_without_a_bill_is_booked_at_the_most_it_can_have_cost(fault: Any) -> None:
    ledger: list[LedgerEntry] = []
    with TeacherServer(faults=[Order(fault)]) as server:
        settings = ChatSettings(base_url=server.base_url, model="scripted", price=PRICE, max_tokens=100)
        clock = HandClock(datetime(2026, 11, 1, tzinfo=UTC))
        meter = Meter("scripted", PRICE, sink=ledger.append, clock=clock)
        with ChatTeacher.connect(settings, meter=meter) as asked:
            assert asked.label("q", SKILLS).skills
    assert ledger[0].usage.completion_tokens == 100
    assert ledger[0].usage.usd > 0.1


def test_the_key_and_the_texts_follow_no_redirect() -> None:
    with TeacherServer() as other, TeacherServer(faults=[Order("redirect", None)]) as server:
        server.elsewhere = f"{other.base_url}/chat/completions"
        with teacher(server, max_attempts=1, api_key="secret") as asked:
            with pytest.raises((TeacherMisconfigured, TeacherUnavailable)):
                asked.label("q", SKILLS)
        assert other.calls.total() == 0
