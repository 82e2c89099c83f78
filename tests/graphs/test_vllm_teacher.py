"""The chat teacher against a real vLLM on CPU, with tiny random models: content is noise, so everything must validate or abstain.

The server runs from an environment of its own, `.venv-vllm` (it pins its torch). The console script of the CPU package fails; the
module works. Starting takes one to two minutes a model.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from agent.budget import Price
from agent.items import PoolItem
from graphs.chat_settings import ChatSettings
from graphs.chat_teacher import ChatTeacher
from graphs.teacher import TeacherMisconfigured

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
START_S = 900.0
SKILLS = ("addition", "greatest common divisor", "maximum")
QUESTIONS = [f"What is {at} + 7?" for at in range(6)]
ITEM = PoolItem(item_id="p", question=QUESTIONS[0], solution="7", answer="7", skills=("addition",))

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not PYTHON.exists(), reason="needs vLLM in .venv-vllm: make vllm-env"),
]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_ready(process: subprocess.Popen[bytes], base_url: str, log: Path) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        try:
            if httpx.get(f"{base_url}/models", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(1)
    pytest.fail(f"vLLM did not start: {log.read_text(errors='replace')[-3000:]}")


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL of a vLLM that serves a tiny random model called `teacher`."""
    folder = tmp_path_factory.mktemp(request.param)
    builder = Path(__file__).with_name("tiny_models.py")
    subprocess.run([sys.executable, builder, request.param, folder / "model"], check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    port = free_port()
    base_url = f"http://127.0.0.1:{port}/v1"
    command = [PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", folder / "model", "--served-model-name", "teacher"]
    options = ["--max-model-len", "4096", "--dtype", "float32", "--host", "127.0.0.1", "--port", str(port)]
    offline = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    log = folder / "vllm.log"
    with log.open("wb") as out, subprocess.Popen([*command, *options], stdout=out, stderr=out, env=os.environ | offline) as process:
        try:
            wait_until_ready(process, base_url, log)
            yield base_url
        finally:
            process.terminate()
            process.wait(60)


@pytest.fixture
def teacher(served: str) -> Iterator[ChatTeacher]:
    price = Price(free=True)
    settings = ChatSettings(base_url=served, model="teacher", price=price, max_tokens=160, temperature=1.0, timeout_s=120)
    with ChatTeacher.connect(settings) as connected:
        yield connected


def test_the_server_keeps_the_schema_so_noise_becomes_labels_of_the_list(teacher: ChatTeacher) -> None:
    found = [teacher.label(question, SKILLS) for question in QUESTIONS]
    assert all(set(one.skills) <= set(SKILLS) for one in found)
    assert any(one.skills for one in found), "without constrained decoding a random model never writes such JSON"
    assert all(one.usage.calls in (1, 2) and one.usage.prompt_tokens > 100 for one in found)


def test_every_reply_validates_or_abstains(teacher: ChatTeacher) -> None:
    answer = "First I add.\n2 + 3 = 6"
    for question in QUESTIONS[:3]:
        found = teacher.diagnose(question, answer, SKILLS[:2], SKILLS)
        assert found.verdict in ("correct", "incorrect", "abstained") and found.evidence in answer and set(found.missing) <= set(SKILLS[:2])
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
    assert teacher.label("12345 " * 4000, SKILLS).skills == () and teacher.tally.count("refused", "label") == 1


def test_a_wrong_model_name_is_a_setting_to_correct(served: str) -> None:
    with ChatTeacher.connect(ChatSettings(base_url=served, model="other", price=Price(free=True))) as wrong:
        with pytest.raises(TeacherMisconfigured, match=r"teacher\.model"):
            wrong.label("q", SKILLS)
