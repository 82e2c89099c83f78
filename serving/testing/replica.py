"""A replica that answers by a script, over real sockets: for tests and benchmarks of the gateway.

    python -m serving.testing.replica --port 0 --models student-v1 --latency-ms 20

The first line on stdout is the address. Every chunk of an answer says which model it comes from. It serves
chat and text completions, streamed or not, tool calls where tools are offered, and 404 for a model that it
has not loaded.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

from starlette.types import Message, Receive, Scope, Send

from agent.items import JsonObject
from serving.http import HttpServer, run

Raw = Sequence[tuple[bytes, bytes]]


@dataclass
class ScriptedReplica:
    """The ASGI application. `statuses` are answered first, one a request (0: the connection is cut); `cut_at`
    ends streams after so many chunks, `says` replaces the model that an answer names, `instead` an answer."""

    models: set[str]
    latency_s: float = 0.0
    chunks: int = 4
    gap_s: float = 0.0
    statuses: list[int] = field(default_factory=list)
    cut_at: int | None = None
    says: str = ""
    text: str = ""
    response_id: str = ""
    instead: JsonObject | None = None
    bodies: list[JsonObject] = field(default_factory=list)
    headers: list[Raw] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    keep: bool = True
    ended: int = 0
    broken_off: int = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        body = json.loads(await _body(receive) or b"{}")
        if self.keep:
            self.bodies.append(body)
            self.headers.append(scope["headers"])
            self.paths.append(scope["path"])
        if self.latency_s:
            await asyncio.sleep(self.latency_s)
        status = self.statuses.pop(0) if self.statuses else 200
        if status == 0:
            raise ConnectionAbortedError("as ordered")
        if self.instead is not None:
            await _json(send, status, self.instead)
            return
        if status != 200 or body.get("model") not in self.models:
            status = 404 if status == 200 else status
            await _json(send, status, {"error": {"message": "secret detail", "code": status}})
            return
        leaving = asyncio.create_task(_left(receive))
        try:
            await self._answer(scope["path"], body, send, leaving)
        finally:
            leaving.cancel()

    async def _answer(self, path: str, body: JsonObject, send: Send, leaving: asyncio.Task[None]) -> None:
        chat = path.endswith("/chat/completions")
        model = self.says or body["model"]
        response_id = self.response_id or f"chatcmpl-{uuid.uuid4().hex}"
        head = {"id": response_id, "created": 1_700_000_000, "model": model}
        words = [self.text or f"{model} says {number}. " for number in range(self.chunks)]
        usage = {"prompt_tokens": 7, "completion_tokens": self.chunks, "total_tokens": 7 + self.chunks}
        if not body.get("stream"):
            await _json(send, 200, head | {"choices": [_choice(chat, body, "".join(words))], "usage": usage})
            self.ended += 1
            return
        start: Message = {
            "type": "http.response.start",
            "status": 200,
            "headers": [(b"content-type", b"text/event-stream")],
        }
        await send(start)
        for number, word in enumerate(words):
            if number == self.cut_at:
                raise ConnectionAbortedError("as ordered")
            if leaving.done():
                self.broken_off += 1
                return
            if self.gap_s:
                await asyncio.sleep(self.gap_s)
            await _event(send, head | {"choices": [_delta(chat, word, number == len(words) - 1)]})
        if (body.get("stream_options") or {}).get("include_usage"):
            await _event(send, head | {"choices": [], "usage": usage})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})
        self.ended += 1


def _choice(chat: bool, body: JsonObject, text: str) -> JsonObject:
    if not chat:
        return {"index": 0, "text": text, "finish_reason": "stop"}
    if body.get("tools") and body["messages"][-1]["role"] == "user":
        call = {"id": "call-1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
        return {"index": 0, "message": message, "finish_reason": "tool_calls"}
    return {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}


def _delta(chat: bool, word: str, last: bool) -> JsonObject:
    part = {"delta": {"content": word}} if chat else {"text": word}
    return {"index": 0, **part, "finish_reason": "stop" if last else None}


async def _body(receive: Receive) -> bytes:
    data = b""
    for _ in itertools.count():
        message = await receive()
        data += message.get("body", b"")
        if not message.get("more_body"):
            break
    return data


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _json(send: Send, status: int, body: JsonObject) -> None:
    data = json.dumps(body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(data))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})


async def _event(send: Send, body: JsonObject) -> None:
    data = b"data: " + json.dumps(body).encode() + b"\n\n"
    await send({"type": "http.response.body", "body": data, "more_body": True})


def main() -> None:
    """Serve until a signal."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--models", nargs="+", default=["student-v1"])
    parser.add_argument("--latency-ms", type=float, default=0.0)
    parser.add_argument("--chunks", type=int, default=4)
    options = parser.parse_args()
    replica = ScriptedReplica(set(options.models), options.latency_ms / 1000, options.chunks, keep=False)
    server = HttpServer(replica, "127.0.0.1", options.port)
    sys.stdout.write(f"{server.url}\n")
    sys.stdout.flush()
    run(server.serve())


if __name__ == "__main__":
    main()
