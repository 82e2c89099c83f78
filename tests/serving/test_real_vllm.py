"""The life of adapters on a real vLLM (CPU, float32)."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.gateway import lead
from serving.adapter_files import CorruptAdapter, adapter_sha256
from serving.adapters import Adapters
from serving.engine import EngineError, EngineUnavailable, Sampling
from serving.gateway.serve import GatewayServer
from serving.proof import UnprovenAdapter
from serving.routes import RouteFile
from serving.settings import CaptureSettings, GatewaySettings, VllmSettings
from serving.testing.fake_vllm import FakeVllm
from serving.transformers_engine import TransformersEngine
from serving.vllm_engine import VllmEngine
from serving.vllm_server import ServerRefused, VllmServer
from streams.local_log import LocalLog
from tests.conftest import free_port, running_vllm
from tests.serving.gateway.site import Heard, crowd, outputs

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1800)]
PROMPTS = ["add 1 and 2 ?", "sub 9 of 4 and 3 ?", "mul 2 and the 3 + 4 * 5 ?", "7 ?"]
GREEDY = Sampling(max_new_tokens=8)

MakeAdapter = Callable[..., Path]
MakeEngine = Callable[..., VllmEngine]


@pytest.fixture
def server(vllm_server: str) -> Iterator[VllmServer]:
    """The real server, without an engine before it."""
    client = VllmServer(vllm_server)
    yield client
    client.close()


@pytest.fixture
def adapters(server: VllmServer, vllm_server: str, base: Path, tmp_path: Path) -> Adapters:
    """The adapters of the real server, without an engine before them."""
    settings = VllmSettings(
        replicas=(vllm_server,), store=tmp_path / "store", prefix=f"r{tmp_path.name}", base_as_adapter=True
    )
    return Adapters(settings, base, [server])


def stripped(answers: list[list[str]]) -> list[str]:
    """vLLM decodes an answer as the prompt's continuation: with this tokenizer it begins with a blank."""
    return [text.strip() for (text,) in answers]


def test_answers_are_peft_s_and_leave_with_the_adapter(
    vllm_server: str, make_engine: MakeEngine, make_adapter: MakeAdapter, base: Path, tmp_path: Path
) -> None:
    engine, peft = make_engine(vllm_server, base_as_adapter=True), TransformersEngine(base)
    adapter = make_adapter(tmp_path / "a", seed=3)
    for version, files in ((1, None), (2, adapter)):
        engine.load(version, files)
        peft.load(version, files)
        answers = stripped(engine.generate(PROMPTS, version, GREEDY))
        assert answers == stripped(peft.generate(PROMPTS, version, GREEDY))
    (name,) = (name for name, version in engine.models().items() if version == 2)
    engine.take_off([name])
    assert set(engine.models().values()) == {1}
    with pytest.raises(EngineError, match="version 2 is not loaded"):
        engine.generate(PROMPTS, 2, GREEDY)


def test_a_context_that_runs_out_ends_the_answer_and_a_prompt_beyond_it_is_refused(
    vllm_server: str, make_engine: MakeEngine
) -> None:
    engine = make_engine(vllm_server, base_as_adapter=True)
    engine.load(1, None)
    nearly = engine.generate(["add " * 120, "add 1 ?"], 1, Sampling(max_new_tokens=30))
    assert len(nearly[0][0].split()) <= 8
    with pytest.raises(EngineError, match="context length") as refused:
        engine.generate(["add " * 200], 1, GREEDY)
    assert not isinstance(refused.value, EngineUnavailable)


def test_module_names_that_match_nothing_load_with_200_and_are_caught(
    adapters: Adapters, server: VllmServer, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    published = adapters.publish(2, make_adapter(tmp_path / "a", seed=3))
    path = published.directory / "adapter_model.safetensors"
    save_file({n.replace(".layers.", ".layers.7"): w for n, w in load_file(path).items()}, path)
    planted = published.manifest.model_copy(update={"adapter_sha256": adapter_sha256(published.directory)})
    server.load("planted", published.path, 60)
    assert "planted" in server.models()
    server.unload("planted")
    with pytest.raises(UnprovenAdapter, match="serves the base under the adapter's name"):
        adapters.bring(replace(published, manifest=planted))
    assert published.name not in server.models()


def test_a_truncated_file_is_refused_by_us_and_by_the_server(
    adapters: Adapters, server: VllmServer, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    published = adapters.publish(2, make_adapter(tmp_path / "a", seed=3))
    weights = published.directory / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CorruptAdapter):
        adapters.bring(published)
    damaged = published.manifest.model_copy(update={"adapter_sha256": adapter_sha256(published.directory)})
    with pytest.raises(ServerRefused):
        adapters.bring(replace(published, manifest=damaged))
    assert published.name not in server.models()


def test_an_adapter_of_another_base_is_caught(
    vllm_server: str, make_adapter: MakeAdapter, base: Path, tmp_path: Path
) -> None:
    other = AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(1)
    for weight in other.parameters():
        weight.data += torch.randn_like(weight) * weight.std()
    other.save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "other")
    settings = VllmSettings(replicas=(vllm_server,), store=tmp_path / "store", base_as_adapter=True)
    engine = VllmEngine(settings, tmp_path / "other")
    with pytest.raises(UnprovenAdapter, match="does not compute what PEFT does"):
        engine.load(2, make_adapter(tmp_path / "a", seed=3))
    assert engine.models() == {}
    engine.close()


def test_one_of_two_servers_refuses_and_the_old_version_serves_on(
    vllm_server: str,
    make_fake: Callable[[], FakeVllm],
    make_engine: MakeEngine,
    make_adapter: MakeAdapter,
    tmp_path: Path,
) -> None:
    fake = make_fake()
    fake.base = "student"
    engine = make_engine(vllm_server, fake.url, base_as_adapter=True)
    engine.load(2, make_adapter(tmp_path / "old", seed=2))
    before, names = stripped(engine.generate(PROMPTS * 4, 2, GREEDY)), engine.models()
    fake.refuses = "no room"
    with pytest.raises(EngineError, match="no room"):
        engine.load(3, make_adapter(tmp_path / "new", seed=3))
    assert engine.models() == names and set(names.values()) == {2}
    assert stripped(engine.generate(PROMPTS * 4, 2, GREEDY)) == before


def test_what_a_server_has_lost_is_brought_back(
    vllm_server: str, server: VllmServer, make_engine: MakeEngine, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    engine = make_engine(vllm_server, base_as_adapter=True)
    engine.load(2, make_adapter(tmp_path / "a", seed=3))
    before = engine.generate(PROMPTS, 2, GREEDY)
    (name,) = engine.models()
    server.unload(name)
    assert engine.generate(PROMPTS, 2, GREEDY) == before
    server.unload(name)
    assert engine.stand(2).ready == (vllm_server,) and set(engine.models()) == {name}


def test_what_a_sleeping_server_gets_waits_until_it_is_woken(
    vllm_server: str, server: VllmServer, make_engine: MakeEngine, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    """A CPU keeps its memory; that requests wait, and the adapter is there afterwards, is the same."""
    engine = make_engine(vllm_server, base_as_adapter=True, sleepers=(vllm_server,), timeout_s=60.0)
    engine.load(2, make_adapter(tmp_path / "a", seed=3))
    before = engine.generate(PROMPTS, 2, GREEDY)
    (name,) = engine.models()
    with ThreadPoolExecutor(1) as user:
        engine.sleep()
        try:
            answer = user.submit(server.complete, name, PROMPTS[0], GREEDY, 60.0)
            assert "sleeps while a round trains" in engine.stand(2).wanting[vllm_server]
            time.sleep(1.0)
            assert not answer.done()
        finally:
            assert engine.wake() == (vllm_server,)
        assert stripped([answer.result()]) == stripped(before[:1])
    assert engine.generate(PROMPTS, 2, GREEDY) == before and engine.wake() == ()


@contextmanager
def users(folder: Path, streams: bool) -> Iterator[list[Heard]]:
    """32 users who ask through a gateway; what they hear. In the end none of their requests has failed, and
    each answer is in the log once, as of the version that its user saw."""
    over, heard = threading.Event(), list[Heard]()
    settings = GatewaySettings(port=0, captured=CaptureSettings(feedback_wait_s=0))
    body = {"model": "demo", "prompt": PROMPTS[0], "max_tokens": 8, "temperature": 0}
    with (
        GatewayServer(settings, folder, lambda: LocalLog(folder / "log.db")) as gateway,
        ThreadPoolExecutor(1) as pool,
    ):
        asking = crowd(gateway.url, 32, over.is_set, ("/v1/completions", body), streams, heard)
        ended = pool.submit(asyncio.run, asking)
        try:
            yield heard
        finally:
            over.set()
        assert ended.result()[1] == []
    table = RouteFile(folder).read()
    assert table is not None and all(answer.whole and len(answer.models) == 1 for answer in heard)
    captured = [answer.served for answer in outputs(folder)]
    assert sorted((s.response_id, s.model) for s in captured if s) == sorted(
        (answer.response_id, *answer.models) for answer in heard
    )


def until_more(heard: list[Heard], count: int = 60) -> None:
    enough, end = len(heard) + count, time.monotonic() + 300
    while len(heard) < enough:
        assert time.monotonic() < end, "the users hear nothing"
        time.sleep(0.05)


def test_no_request_fails_and_no_answer_is_mixed_over_swaps(
    vllm_server: str, make_engine: MakeEngine, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    engine = make_engine(vllm_server, base_as_adapter=True)
    engine.load(2, make_adapter(tmp_path / "2", seed=2))
    names = [lead(tmp_path, engine, 2)]
    with users(tmp_path, streams=True) as heard:
        until_more(heard)
        engine.load(3, make_adapter(tmp_path / "3", seed=3))  # proven while users are served
        names.append(lead(tmp_path, engine, 3))
        until_more(heard)
        lead(tmp_path, engine, 2)
        until_more(heard)
    said = {name: {answer.text for answer in heard if answer.models == {name}} for name in names}
    assert all(said.values()) and not said[names[0]] & said[names[1]]


@pytest.mark.parametrize("base", ["llama"], indirect=True)
def test_a_killed_server_s_users_go_to_the_other_and_it_gets_its_version_back(
    base: Path, vllm_server: str, make_engine: MakeEngine, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    port = free_port()
    options = ["--served-model-name", "student", "--max-model-len", "128", "--enable-lora"]
    environ = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
    with running_vllm(base, tmp_path, *options, port=port, environ=environ) as url:
        engine = make_engine(vllm_server, url, base_as_adapter=True)
        engine.load(2, make_adapter(tmp_path / "a", seed=3))
        before = engine.generate(PROMPTS, 2, GREEDY)
        lead(tmp_path, engine, 2)
        with users(tmp_path, streams=False) as heard:
            until_more(heard)
            found = subprocess.check_output(["pgrep", "-f", "--", f"--port {port}"], text=True)
            os.killpg(os.getpgid(int(found.split()[0])), signal.SIGKILL)
            until_more(heard)
    assert engine.stand(2).ready == (vllm_server,)
    with running_vllm(base, tmp_path, *options, port=port, environ=environ):
        lead(tmp_path, engine, 2)
        table = RouteFile(tmp_path).read()
        assert table is not None and {replica.url for replica in table.replicas} == {vllm_server, url}
        assert engine.generate(PROMPTS, 2, GREEDY) == before
