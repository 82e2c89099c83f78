"""A scripted teacher behind the real HTTP API of OpenAI-compatible servers: for tests, benchmarks and trying
things out.

    python -m graphs.testing.server --latency-ms 50 --fault 429:2 --fault refusal@diagnose

Serves `GET /v1/models` and `POST /v1/chat/completions` (messages, `response_format` json_schema, seed, usage,
errors in OpenAI's form); `GET /calls` tells how often each purpose was asked. Port and model name are those
of the shipped configurations; with `--port 0` the system chooses; the first line on stdout is the address. It
binds to loopback only. No streaming, no tools, one choice.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from agent.items import JsonObject
from graphs.testing.brain import ArithmeticBrain, Brain, ChatRequest, GullibleBrain, SensibleBrain
from graphs.testing.faults import CODES, STATUS, Faults, Kind, Order, spoil
from streams.testing.http import KitHttpServer

HANG_S = 30.0
DRIP_S = 0.1
MAX_BODY_BYTES = 16 * 2**20


class _BadRequest(Exception):
    """What the API refuses, with the status and the name of the parameter."""

    def __init__(self, message: str, param: str, status: int = 400, code: str | None = None) -> None:
        super().__init__(message)
        self.param, self.status, self.code = param, status, code


@dataclass
class TeacherServer:
    """The server, in a thread of this process. `calls` counts requests by purpose, `bodies` holds their JSON.

    `latency_s` is the time from a request to its reply, the server's own work included.

    >>> with TeacherServer() as server:
    ...     server.base_url.startswith("http://127.0.0.1:")
    True
    """

    brain: Brain = field(default_factory=SensibleBrain)
    latency_s: float = 0.0
    faults: Sequence[Order] = ()
    retry_after_s: float | str = 0.05
    api_key: str = ""
    model: str = "scripted"
    elsewhere: str = "http://127.0.0.1:9/"
    port: int = 0
    keep_bodies: bool = True
    calls: Counter[str] = field(default_factory=Counter, init=False)
    bodies: list[JsonObject] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._ordered = Faults(self.faults)
        self._stopping = threading.Event()
        self._http = KitHttpServer(("127.0.0.1", self.port), type("Handler", (_Handler,), {"teacher": self}))
        self._thread = threading.Thread(
            target=self._http.serve_forever, args=(0.02,), name="teacher-server", daemon=True
        )

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def __enter__(self) -> TeacherServer:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopping.set()
        self._http.shutdown()
        self._http.drop_connections()
        self._http.server_close()
        self._thread.join()

    def order(self, faults: Sequence[Order]) -> None:
        """Faults for the next calls, in place of what is left of those ordered before."""
        self._ordered = Faults(faults)

    def answer(self, body: JsonObject) -> tuple[int, JsonObject | str, dict[str, str]]:
        """Status, body and headers for one chat completion; a text in place of a body is sent as it is, an
        empty one drops the line."""
        began = time.monotonic()
        request = _request(body, self.model)
        with self._lock:
            self.calls[request.purpose or "plain"] += 1
            if self.keep_bodies:
                self.bodies.append(body)
        kind = self._ordered.take(request.purpose)
        if kind in STATUS:
            retry, elsewhere = {"Retry-After": str(self.retry_after_s)}, {"Location": self.elsewhere}
            headers = {"429": retry, "redirect": elsewhere}.get(kind, {})
            return STATUS[kind], _error(f"ordered by the script: {kind}", code=CODES.get(kind)), headers
        reply = self._reply(request, body, kind)
        self._stopping.wait(
            HANG_S if kind == "timeout" else max(0.0, began + self.latency_s - time.monotonic())
        )
        return reply

    def _reply(
        self, request: ChatRequest, body: JsonObject, kind: Kind | None
    ) -> tuple[int, JsonObject | str, dict[str, str]]:
        if kind in ("drop", "timeout"):
            return 200, "", {}
        if kind == "garbage":
            return 200, "<html>not a completion</html>", {}
        completion = _completion(request, body, spoil(kind, self.brain.reply(request)), kind)
        if kind == "no_usage":
            del completion["usage"]
        elif kind == "negative_usage":
            completion["usage"] = dict.fromkeys(completion["usage"], -1000)
        return 200, completion, {"X-Drip": "1"} if kind == "drip" else {}

    def wait(self, seconds: float) -> bool:
        """Wait; true when the server is being stopped."""
        return self._stopping.wait(seconds)


class _Handler(BaseHTTPRequestHandler):
    teacher: TeacherServer
    protocol_version = "HTTP/1.1"
    # Headers and body leave in one packet: unbuffered, each call waits 40 ms for a delayed acknowledgement
    wbufsize = -1
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:
        """Quiet: what was asked is in `calls` and `bodies`."""

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            model = {"id": self.teacher.model, "object": "model", "created": 0, "owned_by": "skillloop"}
            self._send(200, {"object": "list", "data": [model]})
        elif self.path == "/calls":
            self._send(200, dict(self.teacher.calls))
        else:
            self._send(404, _error(f"no such path {self.path}"))

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        if length > MAX_BODY_BYTES:
            self.close_connection = True
            self._send(413, _error("the body is too large"))
            return
        raw = self.rfile.read(length)
        if self.path != "/v1/chat/completions":
            self._send(404, _error(f"no such path {self.path}"))
        elif self.teacher.api_key and self.headers.get("Authorization") != f"Bearer {self.teacher.api_key}":
            self._send(401, _error("incorrect API key", code="invalid_api_key"))
        else:
            self._complete(raw)

    def _complete(self, raw: bytes) -> None:
        try:
            status, body, headers = self.teacher.answer(json.loads(raw))
        except json.JSONDecodeError as exc:
            status, body, headers = 400, _error(f"the body is not JSON: {exc}"), {}
        except _BadRequest as exc:
            status, body, headers = exc.status, _error(str(exc), exc.param, exc.code), {}
        if body == "":
            self.close_connection = True
        else:
            self._send(status, body, headers)

    def _send(self, status: int, body: JsonObject | str, headers: dict[str, str] | None = None) -> None:
        data = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", "text/html" if isinstance(body, str) else "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if "X-Drip" not in (headers or {}):
            self.wfile.write(data)
            return
        for byte in data:  # one byte at a time: each comes before a time limit between two bytes
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            if self.teacher.wait(DRIP_S):
                break


def _request(body: object, model: str) -> ChatRequest:
    if not isinstance(body, dict) or not isinstance(body.get("messages"), list) or not body["messages"]:
        raise _BadRequest("messages: a non-empty list is required", "messages")
    if body.get("model") != model:
        raise _BadRequest(f"the model {body.get('model')!r} does not exist", "model", 404, "model_not_found")
    if body.get("stream") or body.get("n", 1) != 1 or body.get("tools"):
        raise _BadRequest("streaming, several choices and tools are not supported", "stream")
    texts: dict[str, list[str]] = {"system": [], "user": [], "assistant": []}
    for message in body["messages"]:
        if (
            not isinstance(message, dict)
            or message.get("role") not in texts
            or not isinstance(message.get("content"), str)
        ):
            raise _BadRequest(
                "messages: each has a role (system, user, assistant) and text content", "messages"
            )
        texts[message["role"]].append(message["content"])
    name, schema = _schema(body.get("response_format"))
    return ChatRequest(
        name, schema, "\n".join(texts["system"]), "\n".join(texts["user"]), int(body.get("seed") or 0)
    )


def _schema(response_format: object) -> tuple[str, JsonObject]:
    if response_format is None or response_format == {"type": "text"}:
        return "", {}
    if not isinstance(response_format, dict) or response_format.get("type") != "json_schema":
        raise _BadRequest("response_format: only json_schema is supported", "response_format")
    wrapper = response_format.get("json_schema")
    schema = wrapper.get("schema") if isinstance(wrapper, dict) else None
    if not isinstance(wrapper, dict) or not isinstance(schema, dict) or not wrapper.get("name"):
        raise _BadRequest("response_format: json_schema needs a name and a schema", "response_format")
    if wrapper.get("strict") and (
        schema.get("additionalProperties") is not False
        or set(schema["required"]) != set(schema["properties"])
    ):
        raise _BadRequest("a strict schema requires every property and allows no other", "response_format")
    return str(wrapper["name"]), schema


def _completion(request: ChatRequest, body: JsonObject, text: str, kind: Kind | None) -> JsonObject:
    message: JsonObject = {"role": "assistant", "content": text, "refusal": None}
    if kind == "refusal":
        message |= {"content": None, "refusal": "I cannot help with that."}
    finish = {"length": "length", "content_filter": "content_filter"}.get(kind or "", "stop")
    tokens = {
        "prompt_tokens": (len(request.system) + len(request.user)) // 4 + 8,
        "completion_tokens": len(text) // 4 + 1,
    }
    return {
        "id": "chatcmpl-scripted",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": body["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": finish, "logprobs": None}],
        "usage": {**tokens, "total_tokens": sum(tokens.values())},
    }


def _error(message: str, param: str | None = None, code: str | None = None) -> JsonObject:
    return {"error": {"message": message, "type": "scripted_error", "param": param, "code": code}}


@contextmanager
def teacher_process(*arguments: str) -> Iterator[str]:
    """The server in a process of its own, with command-line arguments; yields its base URL."""
    command = [sys.executable, "-m", "graphs.testing.server", *arguments]
    with subprocess.Popen(
        command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


BRAINS = {"arithmetic": ArithmeticBrain, "sensible": SensibleBrain, "gullible": GullibleBrain}


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m graphs.testing.server",
        description="A scripted OpenAI-compatible teacher.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--port", type=int, default=8000, help="0 lets the system choose")
    parser.add_argument("--latency-ms", type=float, default=0.0)
    parser.add_argument("--brain", choices=sorted(BRAINS), default="arithmetic")
    parser.add_argument(
        "--fault", action="append", default=[], help="KIND[:COUNT][@PURPOSE], may be given several times"
    )
    parser.add_argument("--api-key", default="", help="refuse requests without this key")
    parser.add_argument("--model", default="teacher", help="the name in the shipped configurations")
    chosen = parser.parse_args(arguments)
    faults = [Order.parse(text) for text in chosen.fault]
    server = TeacherServer(
        BRAINS[chosen.brain](),
        chosen.latency_ms / 1000,
        faults,
        0.05,
        chosen.api_key,
        chosen.model,
        chosen.port,
        False,
    )
    with server, suppress(KeyboardInterrupt):
        sys.stdout.write(f"{server.base_url}\n")
        sys.stdout.flush()
        threading.Event().wait()


if __name__ == "__main__":
    main()
