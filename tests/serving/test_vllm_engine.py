"""What only the engine over HTTP must do: spread, repeat, give up in time, and say why."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import SecretStr

from serving.engine import EngineError, EngineUnavailable, LiveEngine, Sampling
from serving.settings import VllmSettings
from serving.testing.fake_vllm import FakeVllm
from serving.transformers_engine import TransformersEngine
from serving.vllm_engine import VllmEngine

# The conformance suite runs on both architectures.
pytestmark = pytest.mark.parametrize("base", ["llama"], indirect=True)
PROMPTS = [f"add {number % 10} and {number // 10} ?" for number in range(40)]
GREEDY = Sampling(max_new_tokens=4)

MakeFake = Callable[[], FakeVllm]
MakeEngine = Callable[..., VllmEngine]


def test_answers_are_those_of_the_engine_behind_and_spread_over_servers(
    make_fake: MakeFake, make_engine: MakeEngine
) -> None:
    one, two = make_fake(), make_fake()
    engine = make_engine(one.url, two.url)
    assert isinstance(engine, LiveEngine)
    engine.load(1, None)
    assert engine.generate(PROMPTS, 1, GREEDY) == one.engine.generate(PROMPTS, 1, GREEDY)
    assert one.answered["base"] >= 10 and two.answered["base"] >= 10


def test_a_question_that_is_put_several_times_gets_answers_of_its_own(
    make_fake: MakeFake, make_engine: MakeEngine
) -> None:
    engine = make_engine(make_fake().url)
    engine.load(1, None)
    answers = engine.generate(["7 ?"] * 6, 1, Sampling(max_new_tokens=8, temperature=1.0, seed=3))
    assert len({row[0] for row in answers}) > 1


def test_an_outage_of_one_server_is_not_seen(make_fake: MakeFake, make_engine: MakeEngine) -> None:
    here, away = make_fake(), make_fake()
    engine = make_engine(here.url, away.url)
    engine.load(1, None)
    away.stop()
    assert len(engine.generate(PROMPTS, 1, GREEDY)) == len(PROMPTS)
    away.start()
    here.busy = True
    assert len(engine.generate(PROMPTS[:4], 1, GREEDY)) == 4


def test_an_outage_is_waited_for_and_ends_in_time(make_fake: MakeFake, make_engine: MakeEngine) -> None:
    server = make_fake()
    engine = make_engine(server.url, timeout_s=1.0)
    engine.load(1, None)
    server.busy = True
    began = time.monotonic()
    with pytest.raises(EngineUnavailable, match=r"no answer within 1 s; .*503"):
        engine.generate(PROMPTS[:3], 1, GREEDY)
    assert time.monotonic() - began < 30
    patient = make_engine(server.url)
    patient.load(1, None)
    relief = threading.Timer(0.3, lambda: setattr(server, "busy", False))
    relief.start()
    assert len(patient.generate(PROMPTS[:3], 1, GREEDY)) == 3
    relief.join()


def test_a_refusal_is_said_at_once_in_the_servers_words(make_fake: MakeFake, make_engine: MakeEngine) -> None:
    engine = make_engine(make_fake().url)
    engine.load(1, None)
    with pytest.raises(EngineError, match="takes 1 to 127") as refused:
        engine.generate(["add " * 200], 1, GREEDY)
    assert not isinstance(refused.value, EngineUnavailable)


def test_a_key_is_sent_and_missed(make_fake: MakeFake, make_engine: MakeEngine) -> None:
    server = make_fake()
    server.api_key = "secret"
    make_engine(server.url, api_key=SecretStr("secret")).load(1, None)
    with pytest.raises(EngineError, match="401"):
        make_engine(server.url, api_key=SecretStr("wrong")).load(1, None)


def test_servers_of_different_bases_are_refused(make_fake: MakeFake, make_engine: MakeEngine) -> None:
    one, two = make_fake(), make_fake()
    two.base = "another"
    with pytest.raises(EngineError, match="different bases"):
        make_engine(one.url, two.url).load(1, None)
    with pytest.raises(EngineError, match="not the base 'absent'"):
        make_engine(one.url, model="absent").load(1, None)


def test_what_is_no_vllm_is_said(make_engine: MakeEngine, tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailable, match="no vLLM server answers now"):
        make_engine("http://127.0.0.1:9").load(1, None)
    with pytest.raises(EngineError, match="replicas is empty"):
        VllmEngine(VllmSettings(store=tmp_path), tmp_path)
    with pytest.raises(EngineError, match="store is not set"):
        VllmEngine(VllmSettings(replicas=("http://127.0.0.1:9",)), tmp_path)


def test_the_student_is_not_in_this_process_once_its_adapter_is_published(
    make_fake: MakeFake, make_engine: MakeEngine, make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    adapter = make_adapter(tmp_path / "a", seed=3)
    server = make_fake()
    make_engine(server.url).load(2, adapter)
    # A second process finds the reference in the store: it needs no base, not even its folder.
    settings = VllmSettings(replicas=(server.url,), store=tmp_path / "store", prefix="second")
    other = VllmEngine(settings, tmp_path / "no base here")
    other.load(5, adapter)
    assert other.generate(PROMPTS[:2], 5, GREEDY)
    other.close()


def test_peft_and_the_server_agree(
    make_fake: MakeFake,
    make_engine: MakeEngine,
    make_adapter: Callable[..., Path],
    base: Path,
    tmp_path: Path,
) -> None:
    adapter = make_adapter(tmp_path / "a", seed=3)
    engine, peft = make_engine(make_fake().url), TransformersEngine(base)
    engine.load(2, adapter)
    peft.load(2, adapter)
    assert engine.generate(PROMPTS[:8], 2, GREEDY) == peft.generate(PROMPTS[:8], 2, GREEDY)
