"""Spreads the tests over processes, and starts the real vLLM that several of them need.

A file's tests stay together, since its fixtures are dear, unless they name a group of their own.
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

ROOT = Path(__file__).parents[1]
PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
START_S = 900.0


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give every test its file's group, for `--dist loadgroup`."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(str(item.path)))


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


@pytest.fixture(scope="session", params=["llama", "qwen3"])
def vllm_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL of a real vLLM on CPU that serves a tiny random model called `teacher`.

    It runs from an environment of its own, since it pins its torch. The console script of the CPU package fails; the module works.
    """
    if not PYTHON.exists():
        pytest.skip("needs vLLM in .venv-vllm: make vllm-env")
    folder = tmp_path_factory.mktemp(request.param)
    builder = ROOT / "tests" / "graphs" / "tiny_models.py"
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
