"""What the gateway adds to a request, beside LiteLLM's proxy, on one and the same stub upstream.

    python -m benchmarks.gateway --json gateway.json
    make bench-env && python -m benchmarks.gateway --peers .venv-bench/bin/python      # with LiteLLM

The upstream answers after `--latency-ms` (a model's time), whole or as a stream of 16 chunks; an answer takes
up to `--spread` of it more or less, for equal ones bring all clients back in one burst (`--spread 0`). It
says in each answer what it took; the rest of a user's seconds is latency. So many clients ask one question
after the other over kept connections, directly, through `skillloop gateway` (one process, capturing every
answer into a local log) and through LiteLLM's proxy (one worker, default settings), in turns; medians over
`--rounds`. Added latency is the difference of the latency's percentiles to the direct way in the same round.
Requests per second are with an upstream that answers at once. Client, upstream and gateway share the
machine's cores. The swap: from the write of a route table to the first answer of the new version.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Any
from urllib.request import urlopen

from rich.console import Console
from rich.table import Table

from serving.engine import LiveEngine
from serving.routes import Replica, RouteFile, RouteTable, Share

CLIENTS = (1, 32, 128)
CHUNKS = 16
WARM_S = 1.0
TOOK = re.compile(rb"took (\d+) us")


class Upstream(asyncio.Protocol):
    """The cheapest replica there can be: answers every request with the model that it names and ends with
    the microseconds that it took."""

    latency_s = spread = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport, self.buffer = transport, b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (request := _whole(self.buffer)) is not None:
            head, body, self.buffer = request
            if not head.startswith(b"POST"):
                self.transport.write(_http(b'{"object": "list", "data": []}'))
                continue
            later, began = asyncio.get_running_loop().call_later, time.perf_counter()
            whole = self.latency_s * (1 + self.spread * random.uniform(-1, 1))
            if b'"stream": true' in body or b'"stream":true' in body:
                for number in range(CHUNKS + 1):
                    later(whole * number / CHUNKS, self._chunk, number, body, began)
            else:
                later(whole, self._answer, body, began)

    def _answer(self, body: bytes, began: float) -> None:
        message = {"role": "assistant", "content": "a word " * CHUNKS + _took(began)}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        usage = {"prompt_tokens": 9, "completion_tokens": CHUNKS, "total_tokens": 9 + CHUNKS}
        self.transport.write(_http(json.dumps(_head(body) | {"choices": choices, "usage": usage}).encode()))

    def _chunk(self, number: int, body: bytes, began: float) -> None:
        if not number:
            head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
            self.transport.write(head)
        last = number == CHUNKS
        delta = {"content": _took(began) if last else "a word "}
        choices = [{"index": 0, "delta": delta, "finish_reason": "stop" if last else None}]
        data = b"data: " + json.dumps(_head(body, True) | {"choices": choices}).encode() + b"\n\n"
        if last:
            data += b"data: [DONE]\n\n"
        self.transport.write(b"%x\r\n%s\r\n" % (len(data), data) + (b"0\r\n\r\n" if last else b""))


def _took(began: float) -> str:
    return f"took {round(1e6 * (time.perf_counter() - began))} us"


def _head(body: bytes, chunk: bool = False) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{time.time_ns():x}",
        "object": "chat.completion.chunk" if chunk else "chat.completion",
        "created": int(time.time()),
        "model": json.loads(body)["model"],
    }


def _http(body: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % len(body) + body


def _whole(data: bytes) -> tuple[bytes, bytes, bytes] | None:
    """Head, body and rest of a message with a Content-Length, once it is there."""
    head, found, rest = data.partition(b"\r\n\r\n")
    if not found:
        return None
    length = 0
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            length = int(line[15:])
    return None if len(rest) < length else (head, rest[:length], rest[length:])


class Client(asyncio.Protocol):
    """One user: asks, waits for the last byte, notes the seconds that were not the upstream's, asks again."""

    def __init__(self, request: bytes, stop: Callable[[], bool]) -> None:
        self.request, self.stop = request, stop
        self.seconds: list[float] = []
        self.failed = 0
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._ask()

    def _ask(self) -> None:
        if self.stop():
            self.transport.close()
            return
        self.buffer, self.began = b"", time.perf_counter()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        streamed = b"transfer-encoding: chunked" in self.buffer[:1000].lower()
        if not (self.buffer.endswith(b"0\r\n\r\n") if streamed else _whole(self.buffer)):
            return
        took = TOOK.search(self.buffer)
        if self.buffer.startswith(b"HTTP/1.1 200"):
            upstream_s = int(took[1]) / 1e6 if took else 0.0  # a real server does not say
            self.seconds.append(time.perf_counter() - self.began - upstream_s)
        else:
            self.failed += 1
        self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        self.failed += exc is not None
        if not self.done.done():
            self.done.set_result(None)


CHAT = {"messages": [{"role": "user", "content": "What is 17 * 23?"}]}


async def load(
    url: str,
    model: str,
    clients: int,
    stream: bool,
    seconds: float,
    path: str = "/v1/chat/completions",
    asked: dict[str, Any] = CHAT,
) -> dict[str, float]:
    """Percentiles in milliseconds, requests per second, failures."""
    host, port = url.removeprefix("http://").split(":")
    body = json.dumps({"model": model, "stream": stream} | asked).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
    head += f"authorization: Bearer sk-none\r\ncontent-length: {len(body)}\r\n\r\n"
    loop, request = asyncio.get_running_loop(), head.encode() + body
    end = time.perf_counter() + WARM_S + seconds

    def stop() -> bool:
        return time.perf_counter() >= end

    users = [
        (await loop.create_connection(lambda: Client(request, stop), host, int(port)))[1]
        for _ in range(clients)
    ]
    await asyncio.sleep(WARM_S)
    warm = [len(user.seconds) for user in users]
    began = time.perf_counter()
    await asyncio.wait([user.done for user in users])
    times = [1000 * took for user, n in zip(users, warm, strict=True) for took in user.seconds[n:]]
    cuts = quantiles(times, n=100, method="inclusive") if len(times) > 1 else [0.0] * 99
    return {
        "p50_ms": cuts[49],
        "p99_ms": cuts[98],
        "per_s": len(times) / (time.perf_counter() - began),
        "failed": sum(user.failed for user in users),
    }


@contextmanager
def process(*command: str, mark: str = "http://") -> Iterator[str]:
    """A process that prints its address; yields it."""
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    try:
        for line in child.stdout:
            if mark in line:
                yield "http://" + line.split("http://", 1)[1].split()[0].rstrip(";/").removesuffix("/v1")
                break
        else:
            raise SystemExit(f"{command[0]} ended before it served")
    finally:
        child.terminate()
        child.wait()
        child.stdout.close()


@contextmanager
def gateway(upstream: str, folder: Path) -> Iterator[str]:
    """`skillloop gateway` before the upstream."""
    route(folder, [upstream], 1, "student-v1")
    (folder / "gateway.toml").write_text("[gateway]\nport = 0\n[gateway.captured]\nfeedback_wait_s = 0\n")
    command = (str(Path(sys.executable).parent / "skillloop"), "gateway", "--dir", str(folder))
    with process(*command, "--config", str(folder / "gateway.toml")) as url:
        yield url


def route(folder: Path, urls: Sequence[str], version: int, model: str) -> None:
    """Write the table: all users to one version, by its name on these servers."""
    share, replicas = Share(version=version, model=model), tuple(Replica(url=url) for url in urls)
    RouteFile(folder).write(RouteTable(student="demo", shares=(share,), replicas=replicas))


def lead(folder: Path, engine: LiveEngine, version: int) -> str:
    """Lead users to a version where it stands; its name there."""
    served = engine.stand(version)
    route(folder, served.ready, version, served.model)
    return served.model


@contextmanager
def litellm(python: str, upstream: str, folder: Path) -> Iterator[str]:
    """LiteLLM's proxy before the upstream."""
    settings = folder / "litellm.yaml"
    settings.write_text(
        "model_list:\n  - model_name: demo\n    litellm_params:\n      model: openai/student-v1\n"
        f"      api_base: {upstream}/v1\n      api_key: none\n"
    )
    command = [str(Path(python).parent / "litellm"), "--config", str(settings), "--host", "127.0.0.1"]
    # On loopback and for nobody else: without this it does not start unless it has a strong key.
    environment = os.environ | {"LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true"}
    log = folder / "litellm.log"
    with log.open("w") as output:
        child = subprocess.Popen([*command, "--port", "4010"], stdout=output, stderr=output, env=environment)
    try:
        while child.poll() is None:
            try:
                urlopen("http://127.0.0.1:4010/health/liveliness", timeout=1).read()
                break
            except OSError:
                time.sleep(0.5)
        else:
            raise SystemExit(f"LiteLLM ended before it served: {log.read_text()[-2000:]}")
        yield "http://127.0.0.1:4010"
    finally:
        child.terminate()
        child.wait()


def swap_s(url: str, folder: Path, upstream: str) -> float:
    """Seconds from the write of the table to the end of the first answer by the new version."""

    async def ask() -> str:
        reader, writer = await asyncio.open_connection(*url.removeprefix("http://").split(":"))
        body = b'{"model": "demo", "messages": [{"role": "user", "content": "?"}]}'
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n"
        writer.write(head % len(body) + body)
        data = b""
        while _whole(data) is None:
            data += await reader.read(65536)
        writer.close()
        return str(json.loads(data.partition(b"\r\n\r\n")[2])["model"])

    began = time.perf_counter()
    route(folder, [upstream], 2, "student-v2")
    while asyncio.run(ask()) != "student-v2":
        pass
    return time.perf_counter() - began


Row = dict[str, float]


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All ways, loads and rounds."""
    figures: dict[tuple[str, bool, int], list[Row]] = {}
    fastest: dict[str, list[float]] = {}
    with ExitStack() as stack:
        own = (sys.executable, "-m", "benchmarks.gateway", "--run", "upstream", "--latency-ms")
        slow = stack.enter_context(process(*own, str(options.latency_ms), "--spread", str(options.spread)))
        quick = stack.enter_context(process(*own, "0"))
        ways = {
            "direct": (slow, "student-v1"),
            "gateway": (stack.enter_context(gateway(slow, folder)), "demo"),
        }
        at_once = {
            "direct": (quick, "student-v1"),
            "gateway": (stack.enter_context(gateway(quick, folder / "quick")), "demo"),
        }
        for number in range(options.rounds):
            for stream in (False, True):
                for clients in CLIENTS:
                    for way, (url, model) in ways.items():
                        row = asyncio.run(load(url, model, clients, stream, options.seconds))
                        figures.setdefault((way, stream, clients), []).append(row)
            for way, (url, model) in at_once.items():
                row = asyncio.run(load(url, model, 32, False, options.seconds))
                fastest.setdefault(way, []).append(row["per_s"])
            print(f"round {number + 1} of {options.rounds} done", flush=True)
        swap = swap_s(ways["gateway"][0], folder, slow)
        if options.peers:
            _peer(options, stack, (slow, quick), folder, figures, fastest)
    return report(figures, fastest, swap)


def _peer(
    options: argparse.Namespace,
    stack: ExitStack,
    upstreams: tuple[str, str],
    folder: Path,
    figures: dict[tuple[str, bool, int], list[Row]],
    fastest: dict[str, list[float]],
) -> None:
    """LiteLLM afterwards: idle, it takes part of a core."""
    for upstream, at_once in zip(upstreams, (False, True), strict=True):
        with litellm(options.peers, upstream, folder) as url:
            for _ in range(options.rounds):
                if at_once:
                    row = asyncio.run(load(url, "demo", 32, False, options.seconds))
                    fastest.setdefault("litellm", []).append(row["per_s"])
                    continue
                for stream in (False, True):
                    for clients in CLIENTS:
                        row = asyncio.run(load(url, "demo", clients, stream, options.seconds))
                        figures.setdefault(("litellm", stream, clients), []).append(row)


def report(
    figures: dict[tuple[str, bool, int], list[Row]], fastest: dict[str, list[float]], swap: float
) -> dict[str, Any]:
    """Print the table; the figures for `--json`."""
    table = Table("way", "stream", "clients", "added p50 ms", "added p99 ms", "requests/s", "failed")
    rows = []
    for (way, stream, clients), rounds in figures.items():
        direct = figures["direct", stream, clients]
        added = {
            name: round(_median(rounds, name) - _median(direct, name), 2) for name in ("p50_ms", "p99_ms")
        }
        row = {"way": way, "stream": stream, "clients": clients, **added}
        row |= {"per_s": round(_median(rounds, "per_s"), 1), "failed": sum(each["failed"] for each in rounds)}
        row |= {
            "own_p50_ms": round(_median(rounds, "p50_ms"), 2),
            "own_p99_ms": round(_median(rounds, "p99_ms"), 2),
        }
        rows.append(row)
        table.add_row(way, *(str(row[name]) for name in ("stream", "clients", *added, "per_s", "failed")))
    Console().print(table)
    peak = {way: round(median(values)) for way, values in fastest.items()}
    print(f"requests/s, 32 clients, upstream at once: {peak}; swap {1000 * swap:.0f} ms")
    return {"rows": rows, "peak_per_s": peak, "swap_ms": round(1000 * swap, 1)}


def _median(rounds: Sequence[Row], name: str) -> float:
    return median(each[name] for each in rounds)


async def _serve_upstream(latency_s: float, spread: float) -> None:
    Upstream.latency_s, Upstream.spread = latency_s, spread
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", 0, backlog=2048)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


def main() -> None:
    """Compare, or (with --run) be the upstream."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--latency-ms", type=float, default=250.0)
    parser.add_argument("--spread", type=float, default=0.5, help="of the upstream's time")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", help="the Python that has LiteLLM's proxy")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--run", choices=["upstream"])
    options = parser.parse_args()
    if options.run:
        asyncio.run(_serve_upstream(options.latency_ms / 1000, options.spread))
        return
    folder = Path(tempfile.mkdtemp(prefix="skillloop-gateway-"))
    (folder / "quick").mkdir()
    figures = measure(options, folder)
    print(json.dumps(figures))
    if options.json:
        options.json.write_text(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
