"""`python -m loop.demo.live`: the loop closed where users are, shown on this machine.

    users (the openai client) -> gateway -> vLLM, and gateway -> log -> monitor -> curate -> train -> gate ->
    MLflow -> canary -> vLLM

vLLM runs from an environment of its own (`make vllm-env`), `skillloop up` is a process too, and the users are
in this one: they ask through the gateway, know one model name, and see who answered by the name in the reply.
The traffic drifts to skills that the student lacks. The end: a version that a round has taught has answered
enough of them.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from openai import OpenAI
from rich.console import Console

from loop.config import CONFIGS, Config, load
from loop.errors import LoopError
from loop.tasks.student import base_dir
from loop.tasks.world.checker import grade
from loop.tasks.world.traffic import FIRST_SHIFT, Phase, Traffic
from loop.tasks.world.world import ORIGINAL
from serving.routes import RouteFile

CONFIG = CONFIGS / "demo-live.toml"
PER_S = 6.0
AT_ONCE = 8
AFTER = 200
"""So many answers of a promoted version end the demo."""
START_S, END_S = 300.0, 1200.0
TOLD = 50
VLLM = (
    *("--served-model-name", "base", "--max-model-len", "512", "--dtype", "float32", "--enable-lora"),
    *("--max-lora-rank", "16", "--max-loras", "4", "--max-cpu-loras", "8", "--host", "127.0.0.1"),
    *("--max-num-batched-tokens", "16384"),  # docs/dependencies.md: on CPU a prompt in two parts may end it
)
VLLM_ENVIRON = {
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


class LiveDemoFailed(LoopError):
    """A process did not start, or nothing was promoted in time; the message names the log."""


@dataclass
class LiveAnswers:
    """What the users have seen since the traffic drifted: answers and right ones, by the model's name in the
    reply."""

    answers: Counter[str] = field(default_factory=Counter)
    right: Counter[str] = field(default_factory=Counter)
    versions: dict[str, int] = field(default_factory=dict)

    def told(self) -> str:
        """Accuracy by version, in words."""
        return "; ".join(
            f"version {self.versions.get(model, '?')} right in {self.right[model] / count:.0%} of {count}"
            for model, count in sorted(self.answers.items(), key=lambda row: self.versions.get(row[0], 0))
        )


class Users:
    """Ask through the gateway with the official client."""

    def __init__(self, url: str, config: Config, root: Path) -> None:
        self._client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120.0)
        self._config, self._routes = config, RouteFile(root)
        self._drift = config.demo.first_shift
        self._traffic = Traffic(
            config.seed, (Phase(0, ORIGINAL, "original"), Phase(self._drift, FIRST_SHIFT, "shift 1"))
        )
        self.seen = LiveAnswers()

    def ask(self, console: Console) -> int:
        """Ask until a promoted version has given `AFTER` answers; how many questions that took. Raises
        `LiveDemoFailed` when none has in time."""
        end, asked = time.monotonic() + END_S, 0
        with ThreadPoolExecutor(AT_ONCE) as pool:
            while time.monotonic() < end:
                tick = range(asked, asked + TOLD)
                for index, reply in zip(tick, pool.map(self._paced, tick), strict=True):
                    self._note(index, *reply)
                asked += TOLD
                console.print(f"{asked} questions: {self.seen.told() or 'as trained'}", highlight=False)
                if self._promoted_answers() >= AFTER:
                    return asked
        raise LiveDemoFailed(f"no version was promoted within {END_S:.0f} s; see up.log")

    def _paced(self, index: int) -> tuple[str, bool]:
        time.sleep(AT_ONCE / PER_S)
        _, problem = self._traffic.question(index)
        reply = self._client.completions.create(
            model=self._config.student.name,
            prompt=problem.question,
            max_tokens=self._config.student.max_new_tokens,
            temperature=0,
            extra_headers={"x-session-id": f"user-{index % 97}"},
        )
        return reply.model, bool(grade(problem.answer, reply.choices[0].text))

    def _note(self, index: int, model: str, right: bool) -> None:
        table = self._routes.read()
        if table is not None:
            self.seen.versions |= {share.model: share.version for share in table.shares}
        if index >= self._drift:
            self.seen.answers[model] += 1
            self.seen.right[model] += right

    def _promoted_answers(self) -> int:
        """Answers of the champion, canary's time included, once it is not the first version."""
        table = self._routes.read()
        if table is None or table.shares[0].version == 1:
            return 0
        return self.seen.answers[table.shares[0].model]


@contextmanager
def running(name: str, command: list[str | Path], environ: Mapping[str, str], root: Path) -> Iterator[None]:
    """A process with its output in `root`/`name`.log."""
    with (
        (root / f"{name}.log").open("ab") as out,
        subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, **environ}) as process,
    ):
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def wait_for(url: str, what: str, root: Path) -> None:
    """Wait until a server lists its models. Raises `LiveDemoFailed`."""
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        try:
            if httpx.get(f"{url}/v1/models", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(1)
    raise LiveDemoFailed(f"{what} did not start within {START_S:.0f} s; see {root / what}.log")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_live(root: Path, vllm: Path, console: Console) -> dict[str, object]:
    """The demo in `root`; its figures. Raises `LiveDemoFailed`."""
    if not vllm.exists():
        raise LiveDemoFailed(
            f"vLLM is not in {vllm}: `make vllm-env` in a checkout, or `pip install vllm` into an "
            "environment of its own and name its Python with --vllm"
        )
    if (root / "state.db").exists():
        raise LiveDemoFailed(f"{root} holds a run already; remove it, or choose another --dir")
    root.mkdir(parents=True, exist_ok=True)
    began, vllm_port, port = time.monotonic(), free_port(), free_port()
    server, gateway = f"http://127.0.0.1:{vllm_port}", f"http://127.0.0.1:{port}"
    environ = {
        "SKILLLOOP_ENGINE__VLLM__REPLICAS": json.dumps([server]),
        "SKILLLOOP_ENGINE__VLLM__STORE": str(root.resolve() / "store"),
        "SKILLLOOP_GATEWAY__PORT": str(port),
    }
    config = load(CONFIG, environ)
    serve: list[str | Path] = [vllm, "-m", "vllm.entrypoints.openai.api_server"]
    serve += ["--model", base_dir(config.student.base), "--port", str(vllm_port), *VLLM]
    up: list[str | Path] = [sys.executable, "-m", "loop.cli", "up", "--config", CONFIG, "--dir", root]
    console.print(f"starting vLLM at {server} (a minute), then `skillloop up`; logs are in {root}")
    with running("vllm", serve, VLLM_ENVIRON, root):
        wait_for(server, "vllm", root)
        with running("up", up, environ, root):
            wait_for(gateway, "up", root)
            console.print(f"users ask model {config.student.name!r} at {gateway}/v1", highlight=False)
            users = Users(gateway, config, root)
            asked = users.ask(console)
    return _figures(users.seen, asked, time.monotonic() - began)


def _figures(seen: LiveAnswers, asked: int, seconds: float) -> dict[str, object]:
    accuracy = {
        str(seen.versions.get(model, 0)): [seen.right[model], count] for model, count in seen.answers.items()
    }
    return {"questions": asked, "seconds": round(seconds, 1), "right_of_answers_by_version": accuracy}


def main() -> None:
    """The demo from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dir", type=Path, default=Path("runs/demo-live"))
    parser.add_argument("--vllm", type=Path, default=Path(".venv-vllm/bin/python"), help="vLLM's Python")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    try:
        figures = run_live(options.dir, options.vllm, Console())
    except LoopError as exc:
        raise SystemExit(f"{type(exc).__name__}: {exc}") from exc
    Console().print_json(data=figures)
    if options.json:
        options.json.write_text(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
