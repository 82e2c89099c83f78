"""Tiny random students and adapters to serve: a Llama and a Qwen3 with a 40-word vocabulary, built once per
session; servers with vLLM's API before them, shipped and real."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import pytest

from serving.engine import EngineError
from serving.settings import EngineSettings, VllmSettings
from serving.testing.fake_vllm import FakeVllm
from serving.transformers_engine import TransformersEngine
from serving.vllm_engine import VllmEngine
from tests.conftest import running_vllm
from tests.students import build_student, random_adapter

IN_PROCESS = EngineSettings(batch_size=3, stage_tokens=5, device="cpu")


@pytest.fixture(scope="session", params=["llama", "qwen"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_student(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="session")
def make_adapter(base: Path) -> Callable[..., Path]:
    return partial(random_adapter, base)


@pytest.fixture
def make_fake(base: Path) -> Iterator[Callable[[], FakeVllm]]:
    """Servers of the base in threads of this process."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(FakeVllm(TransformersEngine(base, IN_PROCESS)))


@pytest.fixture
def make_engine(base: Path, tmp_path: Path) -> Iterator[Callable[..., VllmEngine]]:
    """Engines on servers with these addresses; what they have loaded is taken off at the end."""

    def clean(engine: VllmEngine) -> None:
        with suppress(EngineError):
            engine.take_off(list(engine.models()))

    with ExitStack() as stack:

        def make(*urls: str, **settings: object) -> VllmEngine:
            chosen = {
                "replicas": urls,
                "store": tmp_path / "store",
                "prefix": f"t{secrets.token_hex(4)}",
                "reference_device": "cpu",
                "timeout_s": 60.0,
                **settings,
            }
            engine = VllmEngine(VllmSettings.model_validate(chosen), base)
            stack.callback(engine.close)
            stack.callback(clean, engine)
            return engine

        yield make


@pytest.fixture(scope="session")
def vllm_server(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real vLLM that serves the base as `student`, ready for adapters."""
    options = ["--served-model-name", "student", "--max-model-len", "128"]
    options += ["--enable-lora", "--max-lora-rank", "16", "--max-loras", "2", "--max-cpu-loras", "4"]
    environ = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "VLLM_SERVER_DEV_MODE": "1"}
    folder = tmp_path_factory.mktemp("vllm")
    with running_vllm(base, folder, *options, environ=environ) as url:
        yield url
