"""The chat teacher against a real vLLM on CPU, with tiny random models: content is noise, so everything must
validate or abstain."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from agent.budget import Price
from agent.items import PoolItem
from graphs.chat.settings import ChatSettings
from graphs.chat.teacher import ChatTeacher
from graphs.teacher import TeacherMisconfigured

SKILLS = ("addition", "greatest common divisor", "maximum")
QUESTIONS = [f"What is {at} + 7?" for at in range(6)]
ITEM = PoolItem(item_id="p", question=QUESTIONS[0], solution="7", answer="7", skills=("addition",))

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1200)]


@pytest.fixture
def teacher(vllm_url: str) -> Iterator[ChatTeacher]:
    price = Price(free=True)
    settings = ChatSettings(
        base_url=vllm_url, model="teacher", price=price, max_tokens=160, temperature=1.0, timeout_s=120
    )
    with ChatTeacher.connect(settings) as connected:
        yield connected


def test_the_server_keeps_the_schema_so_noise_becomes_labels_of_the_list(teacher: ChatTeacher) -> None:
    found = [teacher.label(question, SKILLS) for question in QUESTIONS]
    assert all(set(one.skills) <= set(SKILLS) for one in found)
    assert any(one.skills for one in found), (
        "without constrained decoding a random model never writes such JSON"
    )
    assert all(one.usage.calls in (1, 2) and one.usage.prompt_tokens > 100 for one in found)


def test_every_reply_validates_or_abstains(teacher: ChatTeacher) -> None:
    answer = "First I add.\n2 + 3 = 6"
    for question in QUESTIONS[:3]:
        found = teacher.diagnose(question, answer, SKILLS[:2], SKILLS)
        assert (
            found.verdict in ("correct", "incorrect", "abstained")
            and found.evidence in answer
            and set(found.missing) <= set(SKILLS[:2])
        )
        assert found.verdict != "incorrect" or (found.evidence and found.missing)
    for one in teacher.solve(QUESTIONS[0], 2, seed=1).solutions:
        assert one.text and one.answer
    assert all(one.strip() for one in teacher.write("addition", [ITEM], 2, seed=1).questions)
    assert teacher.tally.count("refused") == 0 and teacher.client.meter.reading().usage.completion_tokens > 0


def test_a_replay_asks_the_server_nothing(teacher: ChatTeacher) -> None:
    first = teacher.solve(QUESTIONS[1], 2, seed=3)
    paid = teacher.client.meter.reading()
    assert teacher.solve(QUESTIONS[1], 2, seed=3) == first
    again = teacher.client.meter.reading()
    assert again.usage == paid.usage and again.cached_calls == paid.cached_calls + paid.usage.calls


def test_a_text_longer_than_the_model_can_read_is_an_abstention(teacher: ChatTeacher) -> None:
    assert (
        teacher.label("12345 " * 4000, SKILLS).skills == () and teacher.tally.count("refused", "label") == 1
    )


def test_a_wrong_model_name_is_a_setting_to_correct(vllm_url: str) -> None:
    with ChatTeacher.connect(ChatSettings(base_url=vllm_url, model="other", price=Price(free=True))) as wrong:
        with pytest.raises(TeacherMisconfigured, match=r"teacher\.model"):
            wrong.label("q", SKILLS)
