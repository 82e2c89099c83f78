"""Spreads the tests over processes, leaves out the long ones on demand, and starts the real vLLM that several
need."""

from __future__ import annotations

import gc
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.shared import BuildOnce, build_once
from tests.spread import ByFile, begins

ROOT = Path(__file__).parents[1]
PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
START_S = 900.0
LEFT_OUT = "long: make test ALL=1 runs it"
UNTIL = "LONG_TESTS_UNTIL"
NO_TIME = f"long, and its turn came after the time in {UNTIL}"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--leave-out-long", action="store_true", help="skip the tests marked long, and say so")


def pytest_configure() -> None:
    """Readline, in the process that starts the tests' processes, gives these a COLUMNS of 80."""
    os.environ.pop("COLUMNS", None)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What takes longest begins first, so that no process is left with it at the end; but tests marked long
    come last, since a limit in time may leave some of them out."""
    items.sort(key=lambda item: (bool(item.get_closest_marker("long")), begins(item.nodeid)))
    if config.getoption("--leave-out-long"):
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason=LEFT_OUT))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """A long test whose turn comes after `LONG_TESTS_UNTIL` (seconds since 1970) is left out, by name: CI
    has a limit, and its machine is at times four times slower than at others."""
    if item.get_closest_marker("long") and time.time() > float(os.environ.get(UNTIL, "inf")):
        pytest.skip(NO_TIME)


def pytest_collection_finish() -> None:
    """What collection imported stays until the end: the garbage collector need not look at it again."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was left out, and why."""
    skipped = terminalreporter.stats.get("skipped", [])
    for reason in (LEFT_OUT, NO_TIME):
        files = (r.nodeid.partition("::")[0] for r in skipped if reason in str(r.longrepr))
        left_out = Counter(files)
        if left_out:
            terminalreporter.section(f"left out: {reason}")
            for file, tests in sorted(left_out.items()):
                terminalreporter.line(f"left out: {tests:4} of {file}")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    """How tests are spread over processes."""
    return ByFile(config, log)


@pytest.fixture(scope="session", name="build_once")
def _build_once(tmp_path_factory: pytest.TempPathFactory) -> BuildOnce:
    """`build_once(name, build)`: a folder that is filled once for all test processes."""
    own = tmp_path_factory.getbasetemp()
    return partial(build_once, own.parent if "PYTEST_XDIST_WORKER" in os.environ else own)


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


@contextmanager
def running_vllm(
    model: Path, folder: Path, *options: str, port: int = 0, environ: Mapping[str, str] = {}
) -> Iterator[str]:
    """A real vLLM on CPU that serves `model`; yields its address without `/v1`. Its log is in `folder`.

    It runs from an environment of its own, since it pins its torch. The console script of the CPU package
    fails; the module works.
    """
    if not PYTHON.exists():
        pytest.skip("needs vLLM in .venv-vllm: make vllm-env")
    port = port or free_port()
    url, log = f"http://127.0.0.1:{port}", folder / "vllm.log"
    command = [PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--dtype", "float32"]
    command += ["--max-num-batched-tokens", "16384"]  # docs/dependencies.md: a prompt in two parts ends it
    place = ["--host", "127.0.0.1", "--port", str(port)]
    quiet = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with (
        log.open("ab") as out,
        subprocess.Popen(
            [*command, *place, *options],
            stdout=out,
            stderr=out,
            env=os.environ | quiet | environ,
            start_new_session=True,
        ) as process,
    ):
        try:
            wait_until_ready(process, f"{url}/v1", log)
            yield url
        finally:
            process.terminate()
            process.wait(60)


@pytest.fixture(scope="session", params=["llama", "qwen3"])
def vllm_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL of a real vLLM that serves a tiny random chat model called `teacher`."""
    folder = tmp_path_factory.mktemp(request.param)
    builder = ROOT / "tests" / "graphs" / "tiny_models.py"
    subprocess.run(
        [sys.executable, builder, request.param, folder / "model"],
        check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    options = ["--served-model-name", "teacher", "--max-model-len", "4096"]
    with running_vllm(folder / "model", folder, *options) as url:
        yield f"{url}/v1"
