"""The chat teacher against the scripted server: every fault, every retry, every check, over real HTTP."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from agent.budget import BudgetExceeded, Caps, LedgerEntry, Price, UnpricedModel, Usage
from agent.items import PoolItem
from graphs.chat.cache import SqliteReplies
from graphs.chat.client import ChatClient
from graphs.chat.meter import Meter, Work
from graphs.chat.settings import ChatSettings
from graphs.chat.teacher import ChatTeacher
from graphs.teacher import CatalogTeacher, TeacherExhausted, TeacherMisconfigured, TeacherUnavailable
from graphs.testing.faults import Order
from graphs.testing.server import TeacherServer
from streams.clock import HandClock

SKILLS = ("addition", "greatest common divisor", "maximum")
ITEM = PoolItem(item_id="p1", question="What is 2 + 3?", solution="$2+3=5$", answer="5", skills=("addition",))
ANSWER = "First I add.\n2 + 3 = 6\nSo the answer is 6."
FREE = Price(free=True)


def settings(server: TeacherServer, **more: Any) -> ChatSettings:
    known: dict[str, Any] = {
        "base_url": server.base_url,
        "model": "scripted",
        "price": FREE,
        "timeout_s": 5.0,
        "backoff_s": 0.01,
    }
    return ChatSettings(**(known | {"max_backoff_s": 1.0} | more))


class Opened:
    """A server with faults and a teacher connected to it."""

    def __init__(self, server: TeacherServer, teacher: ChatTeacher) -> None:
        self.server, self.teacher = server, teacher

    @property
    def calls(self) -> int:
        return self.server.calls.total()


@pytest.fixture
def opened(request: pytest.FixtureRequest) -> Iterator[Opened]:
    """Parametrize indirectly with the faults to order."""
    with TeacherServer(faults=[Order.parse(text) for text in getattr(request, "param", [])]) as server:
        teacher = ChatTeacher.connect(settings(server))
        yield Opened(server, teacher)
        teacher.client.close()


def with_faults(*faults: str) -> Any:
    return pytest.mark.parametrize("opened", [list(faults)], indirect=True, ids=[",".join(faults)])


def test_every_method_gives_a_checked_reply(opened: Opened) -> None:
    teacher: CatalogTeacher = opened.teacher
    assert teacher.name_skill("How many primes divide twelve?").name
    catalog = teacher.cluster(["adding fractions", "adding integers", "area of circles"], 2).skills
    assert [skill.name for skill in catalog] == ["adding fractions", "adding integers"]
    assert 1 <= len(teacher.label("What is 2 + 3?", SKILLS).skills) <= 3
    written = teacher.write("addition", [ITEM], 2, seed=1).questions
    assert len(set(written)) == 2
    solutions = teacher.solve(ITEM.question, 3, seed=5).solutions
    assert len({one.text for one in solutions}) == 3 and all(
        "\n\n" in one.text and "\\boxed" in one.text for one in solutions
    )
    assert [one.answer for one in teacher.rewrite(ITEM, 3, seed=1).solutions] == ["5"] * 3
    assert (
        opened.calls == 10
        and opened.teacher.tally.count("refused") == opened.teacher.tally.count("invalid") == 0
    )


def test_a_diagnosis_quotes_the_answer_and_names_needed_skills(opened: Opened) -> None:
    verdicts = set()
    for at in range(12):
        found = opened.teacher.diagnose(f"question {at}", ANSWER, SKILLS[:2], SKILLS)
        verdicts.add(found.verdict)
        assert found.evidence in ANSWER and set(found.missing) <= set(SKILLS[:2]) and found.usage.calls == 1
        assert (found.verdict == "incorrect") == bool(found.missing) == bool(found.evidence)
    assert verdicts == {"correct", "incorrect"}


@with_faults("429:2", "500", "drop")
def test_passing_errors_are_retried_in_one_layer(opened: Opened) -> None:
    assert opened.teacher.label("q", SKILLS).usage.calls == 1, "a failed attempt costs nothing"
    assert opened.calls == 5, "one answer after four failures"


@with_faults("garbage")
def test_a_body_that_is_no_completion_is_retried(opened: Opened) -> None:
    assert opened.teacher.label("q", SKILLS).skills and opened.calls == 2


def test_a_server_that_hangs_times_out_and_is_asked_again() -> None:
    with TeacherServer(faults=[Order("timeout")]) as server:
        teacher = ChatTeacher.connect(settings(server, timeout_s=0.3))
        assert teacher.label("q", SKILLS).skills and server.calls.total() == 2
        teacher.client.close()


@pytest.mark.parametrize("fault", ["500:*", "429:*", "drop:*"])
def test_an_error_that_lasts_ends_as_unavailable(fault: str) -> None:
    with TeacherServer(faults=[Order.parse(fault)]) as server:
        teacher = ChatTeacher.connect(settings(server, max_attempts=3))
        with pytest.raises(TeacherExhausted, match="does not answer"):
            teacher.label("q", SKILLS)
        assert server.calls.total() == 3, "three attempts, not three times three"
        teacher.client.close()


def test_nobody_listening_is_unavailable() -> None:
    teacher = ChatTeacher.connect(
        ChatSettings(base_url="http://127.0.0.1:9/v1", model="m", price=FREE, max_attempts=2, backoff_s=0.01)
    )
    with pytest.raises(TeacherUnavailable):
        teacher.label("q", SKILLS)


def test_retry_after_is_honoured_and_pauses_everybody() -> None:
    clock = HandClock(datetime(2026, 11, 1, tzinfo=UTC))
    with TeacherServer(faults=[Order("429")], retry_after_s=30) as server:
        teacher = ChatTeacher.connect(settings(server, max_backoff_s=60), clock=clock)
        assert teacher.label("q", SKILLS).skills
        assert 30 <= (clock.now() - datetime(2026, 11, 1, tzinfo=UTC)).total_seconds() < 31
        teacher.client.close()


def test_a_pause_that_is_too_long_is_left_to_the_caller() -> None:
    with TeacherServer(faults=[Order("429", None)], retry_after_s=3600) as server:
        teacher = ChatTeacher.connect(settings(server))
        with pytest.raises(TeacherExhausted):
            teacher.label("q", SKILLS)
        assert server.calls.total() == 1
        teacher.client.close()


@pytest.mark.parametrize(
    ("fault", "setting"), [("401", "teacher.api_key"), ("quota", "quota"), ("400", "teacher.model")]
)
def test_a_lasting_refusal_names_the_setting_and_is_not_retried(fault: str, setting: str) -> None:
    with TeacherServer(faults=[Order.parse(fault)]) as server:
        teacher = ChatTeacher.connect(settings(server))
        with pytest.raises(TeacherMisconfigured, match=setting):
            teacher.label("q", SKILLS)
        assert server.calls.total() == 1
        teacher.client.close()


def test_wrong_key_and_wrong_model_are_named_and_the_key_is_not_shown() -> None:
    with TeacherServer(api_key="right") as server:
        for more, message in (
            ({"api_key": SecretStr("geheim")}, "api_key"),
            ({"api_key": SecretStr("right"), "model": "other"}, "other"),
        ):
            teacher = ChatTeacher.connect(settings(server, **more))
            with pytest.raises(TeacherMisconfigured, match=message) as caught:
                teacher.label("q", SKILLS)
            assert "geheim" not in f"{caught.value} {teacher.client.settings!r}"
            teacher.client.close()


@with_faults("too_long@diagnose")
def test_a_text_the_server_cannot_take_is_an_abstention(opened: Opened) -> None:
    assert opened.teacher.diagnose("q", ANSWER, SKILLS, SKILLS).verdict == "abstained"
    assert opened.teacher.tally.count("refused", "diagnose") == 1


def test_a_refused_request_after_a_successful_one_is_about_its_text() -> None:
    with TeacherServer(faults=[Order("429", 0), Order("400", 1, "diagnose")]) as server:
        teacher = ChatTeacher.connect(settings(server))
        with pytest.raises(TeacherMisconfigured):
            teacher.diagnose("q", ANSWER, SKILLS, SKILLS)
        assert teacher.diagnose("q", ANSWER, SKILLS, SKILLS).verdict != "abstained"
        teacher.client.close()


@pytest.mark.parametrize("kind", ["truncated", "length", "off_list", "fake_evidence"])
def test_a_bad_reply_gets_one_repair_turn(kind: Any) -> None:
    with TeacherServer(faults=[Order(kind)]) as server:
        teacher = ChatTeacher.connect(settings(server))
        found = teacher.diagnose("q", ANSWER, SKILLS, SKILLS)
        assert found.verdict != "abstained" and found.usage.calls == 2, "the repair is paid for and counted"
        assert [message["role"] for message in server.bodies[1]["messages"]] == [
            "system",
            "user",
            "assistant",
            "user",
        ]
        assert teacher.tally.count("repaired", "diagnose") == 1
        teacher.client.close()


@pytest.mark.parametrize(
    ("kind", "calls"),
    [
        ("truncated", 2),
        ("length", 2),
        ("off_list", 2),
        ("fake_evidence", 2),
        ("refusal", 1),
        ("content_filter", 1),
    ],
)
def test_what_stays_unusable_is_an_abstention(kind: Any, calls: int) -> None:
    with TeacherServer(faults=[Order(kind, None)]) as server:
        teacher = ChatTeacher.connect(settings(server))
        found = teacher.diagnose("q", ANSWER, SKILLS, SKILLS)
        assert (found.verdict, found.missing, found.evidence) == ("abstained", (), "")
        assert (
            server.calls.total() == found.usage.calls == calls
            and (teacher.tally.count("refused") or teacher.tally.count("invalid")) == 1
        )
        if kind in ("truncated", "refusal"):
            assert teacher.solve("What is 1 + 1?", 2, 0).solutions == ()
        teacher.client.close()


def test_an_empty_answer_can_be_diagnosed(opened: Opened) -> None:
    assert {opened.teacher.diagnose(f"q{at}", " ", SKILLS, SKILLS).verdict for at in range(10)} == {
        "correct",
        "incorrect",
    }


def test_a_replay_from_the_file_costs_nothing_and_says_the_same(tmp_path: Path) -> None:
    def work(teacher: ChatTeacher) -> list[Any]:
        return [
            teacher.label("q", SKILLS),
            teacher.diagnose("q", ANSWER, SKILLS, SKILLS),
            teacher.diagnose("bad", ANSWER, SKILLS, SKILLS),
            teacher.solve("What is 1 + 1?", 3, 7),
        ]

    with TeacherServer(faults=[Order("refusal", 1, "diagnose")]) as server:
        results = []
        for _ in range(2):
            with SqliteReplies(tmp_path / "replies.sqlite") as cache:
                teacher = ChatTeacher.connect(settings(server), cache)
                results.append(work(teacher))
                reading = teacher.client.meter.reading()
                teacher.client.close()
        assert results[0] == results[1], "usage included: what a reply cost when it was made"
        assert server.calls.total() == 6 and reading.cached_calls == 6 and reading.usage == Usage()


def test_sampling_and_sample_number_are_part_of_the_key(opened: Opened) -> None:
    teacher = opened.teacher
    teacher.solve("What is 1 + 1?", 2, 7)
    teacher.solve("What is 1 + 1?", 3, 7)
    assert opened.calls == 3, "two of three samples are known"
    teacher.solve("What is 1 + 1?", 3, 8)
    assert opened.calls == 6
    other = ChatTeacher(ChatClient(settings(opened.server, creative_temperature=1.0), teacher.client.cache))
    other.solve("What is 1 + 1?", 3, 8)
    assert opened.calls == 9
    other.client.close()


def test_equal_requests_at_once_are_one_call() -> None:
    with TeacherServer(latency_s=0.1) as server:
        teacher = ChatTeacher.connect(settings(server))
        threads = [threading.Thread(target=teacher.label, args=("q", SKILLS)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert server.calls.total() == 1 and teacher.client.meter.reading().cached_calls == 5
        teacher.client.close()


PRICE = Price(prompt_usd_per_mtok=1.0, completion_usd_per_mtok=10.0)


def test_every_paid_call_is_a_ledger_entry_of_its_round() -> None:
    entries: list[LedgerEntry] = []
    with TeacherServer() as server:
        teacher = ChatTeacher.connect(
            settings(server, price=PRICE), meter=Meter("scripted", PRICE, sink=entries.append), student="s"
        )
        label = teacher.label("q", SKILLS)
        teacher.for_round("r1").solve("What is 1 + 1?", 2, 0)
        teacher.label("q", SKILLS)
        teacher.client.close()
    assert [(one.student, one.round_id, one.activity, one.usage.calls) for one in entries] == [
        ("s", None, "label", 1),
        ("s", "r1", "synthesize", 1),
        ("s", "r1", "synthesize", 1),
    ]
    assert (
        len({one.entry_id for one in entries}) == 3
        and label.usage == entries[0].usage
        and label.usage.usd > 0
    )


def test_a_cap_stops_before_the_call_that_would_exceed() -> None:
    with TeacherServer() as server:
        meter = Meter("scripted", PRICE, Caps(usd_per_round=0.02))
        teacher = ChatTeacher.connect(settings(server, max_tokens=1000), meter=meter).for_round("r1")
        with pytest.raises(BudgetExceeded, match="usd_per_round"):
            for at in range(10_000):
                teacher.label(f"question {at}", SKILLS)
        spent = meter.reading().usage
        assert 0.005 < spent.usd <= 0.02 and spent.calls == server.calls.total()
        assert teacher.label("question 0", SKILLS).skills, "what is known stays free"
        teacher.client.close()


def test_money_under_way_counts_and_earlier_spending_too() -> None:
    entry = LedgerEntry(
        entry_id="a", student="s", round_id="r", day="2026-11-01", activity="label", usage=Usage(usd=0.9)
    )
    meter = Meter(
        "m",
        PRICE,
        Caps(usd_per_day=1.0),
        before=[entry, entry],
        clock=HandClock(datetime(2026, 11, 1, tzinfo=UTC)),
    )
    work = Work("s", None, "diagnose")
    first = meter.reserve(work, 0, 6000)
    with pytest.raises(BudgetExceeded):
        meter.reserve(work, 0, 6000)
    meter.release(first)
    meter.reserve(work, 0, 6000)


def test_a_model_without_a_price_is_asked_nothing() -> None:
    with TeacherServer() as server:
        teacher = ChatTeacher.connect(settings(server, price=None))
        with pytest.raises(UnpricedModel, match="scripted"):
            teacher.label("q", SKILLS)
        assert not server.calls
        teacher.client.close()


def test_no_more_requests_at_once_than_allowed() -> None:
    most = [0]
    now = [0]
    lock = threading.Lock()

    class Watched:
        def reply(self, request: Any) -> str:
            with lock:
                now[0] += 1
                most[0] = max(most[0], now[0])
            threading.Event().wait(0.01)
            with lock:
                now[0] -= 1
            return '{"skills": ["addition"]}'

    with TeacherServer(Watched()) as server:
        teacher = ChatTeacher.connect(settings(server, max_concurrency=3))
        threads = [threading.Thread(target=teacher.label, args=(f"q{at}", SKILLS)) for at in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert 1 < most[0] <= 3
        teacher.client.close()


def test_settings_reject_what_cannot_work() -> None:
    with pytest.raises(ValidationError, match="http"):
        ChatSettings(base_url="localhost:8000", model="m")
    assert ChatSettings(base_url="http://h/v1/", model="m").base_url == "http://h/v1"
