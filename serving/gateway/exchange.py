"""One completion on its way from a replica to a user: relayed, captured, and only then ended.

1. An answer's last bytes (the body, or a stream's `[DONE]`) go out after its event is in the spool.
2. A user who leaves ends the replica's work; half an answer is counted and not captured, since judging it
   would charge the student with what it was not let say.
3. Where a replica breaks off before the first byte, another one is asked; after it, the user's stream ends in
   an error event and without `[DONE]`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import Counter
from dataclasses import dataclass, field

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from agent.items import JsonObject
from serving.gateway.capture import Asked, Capture
from serving.gateway.completions import StudentReply, parse
from serving.gateway.errors import ClientGone, Refusal
from serving.gateway.forward import CUT, Sent, Upstream
from serving.routes import Replica

logger = logging.getLogger(__name__)

DONE = b"[DONE]"
EVENT_BYTES = 8 * 2**20
SSE = b"text/event-stream; charset=utf-8"


@dataclass(frozen=True)
class Desk:
    """What exchanges share. `capture` None: somebody else captures. The counters are by model."""

    upstream: Upstream
    capture: Capture | None
    client_timeout_s: float
    slow_s: float
    in_flight: Counter[str] = field(default_factory=Counter)
    requests: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    slow: Counter[str] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)


class Out:
    """The user's side: sends with a time limit, so that nobody holds a replica by not reading."""

    def __init__(self, send: Send, timeout_s: float, request_id: str) -> None:
        self._send, self._timeout_s = send, timeout_s
        self._id = (b"x-request-id", request_id.encode())
        self.begun = self.over = False

    async def head(self, status: int, content_type: bytes, length: int | None = None) -> None:
        """The status line and headers."""
        self.begun = True
        headers = [(b"content-type", content_type), self._id]
        headers.append(
            (b"cache-control", b"no-cache") if length is None else (b"content-length", b"%d" % length)
        )
        await self._put({"type": "http.response.start", "status": status, "headers": headers})

    async def part(self, data: bytes) -> None:
        """Some of the body."""
        await self._put({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes = b"") -> None:
        """The end of the body."""
        self.over = True
        await self._put({"type": "http.response.body", "body": data, "more_body": False})

    async def whole(self, status: int, data: bytes) -> None:
        """A JSON answer."""
        await self.head(status, b"application/json", len(data))
        await self.end(data)

    async def _put(self, message: JsonObject) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._send(message)
        except TimeoutError as exc:
            raise ClientGone(f"took nothing for {self._timeout_s} s") from exc


class Exchange(Response):
    """The answer to one request; `body` has the model's name in it already."""

    def __init__(
        self, desk: Desk, asked: Asked, replicas: tuple[Replica, ...], path: str, asked_body: JsonObject
    ) -> None:
        self.background = None
        self._desk, self._asked, self._replicas = desk, asked, replicas
        self._path, self._body = path, asked_body
        self._strip_usage = _want_usage(asked_body)
        self._reply = StudentReply()
        self._first_s: float | None = None
        self._id = ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._id = scope["state"]["request_id"]
        out, work = Out(send, self._desk.client_timeout_s, self._id), asyncio.current_task()
        watch = asyncio.create_task(_leaving(receive, work, out))
        self._desk.requests[self._asked.model] += 1
        self._desk.in_flight[self._asked.model] += 1
        try:
            await self._answer(out)
        except asyncio.CancelledError:
            if not watch.done() or work is None:
                raise
            work.uncancel()
            self._desk.left["user left"] += 1
        except ClientGone:
            self._desk.left["user too slow"] += 1  # the server closes the unfinished connection
        finally:
            self._desk.slow[self._asked.model] += time.monotonic() - self._asked.began > self._desk.slow_s
            self._desk.in_flight[self._asked.model] -= 1
            watch.cancel()

    async def _answer(self, out: Out) -> None:
        try:
            sent = await self._desk.upstream.send(
                self._replicas, self._asked.model, self._path, self._body, self._id
            )
        except Refusal as refusal:
            self._desk.failures[self._asked.model] += refusal.status >= 500
            await out.whole(refusal.status, refusal.body())
            return
        async with sent:
            if sent.streams:
                await self._relay(sent, out)
            else:
                await self._whole(sent, out)

    async def _whole(self, sent: Sent, out: Out) -> None:
        body = parse(sent.body)
        if body is None:
            self._desk.failures[self._asked.model] += 1
            refusal = Refusal(502, "upstream_error", "the student's server sent no JSON object")
            await out.whole(refusal.status, refusal.body())
            return
        if sent.status != 200:
            refusal = _refusal_of(sent.status, body)
            self._desk.failures[self._asked.model] += refusal.status >= 500
            await out.whole(refusal.status, sent.body if "error" in body else refusal.body())
            return
        self._reply.take(body)
        await self._note()
        await out.whole(sent.status, sent.body)

    async def _relay(self, sent: Sent, out: Out) -> None:
        await out.head(sent.status, SSE)
        rest, done = b"", False
        try:
            async for chunk in sent.chunks():
                *events, rest = (rest + chunk).replace(b"\r\n", b"\n").split(b"\n\n")
                parts, done = self._take(events)
                if parts:
                    await out.part(b"".join(parts))
                if done or len(rest) > EVENT_BYTES:
                    break
        except CUT as exc:
            logger.warning("replica %s broke off: %s: %s", sent.url, type(exc).__name__, exc)
            self._desk.upstream.balancer.failed(sent.url)
        if done:
            await self._note()
            await out.end(b"data: [DONE]\n\n")
            return
        self._desk.failures[self._asked.model] += 1
        refusal = Refusal(502, "stream_cut", "the student's server broke off; the answer is not complete")
        await out.end(b"data: " + refusal.body() + b"\n\n")

    def _take(self, events: list[bytes]) -> tuple[list[bytes], bool]:
        """Read events of a stream: those to pass on, and whether the stream is done. One that reports an
        error ends it as broken."""
        parts: list[bytes] = []
        for event in events:
            data = event.removeprefix(b"data:").strip() if event.startswith(b"data:") else b""
            if data == DONE:
                return parts, True
            body = parse(data) if data else None
            if body is not None:
                if "error" in body:
                    raise ConnectionAbortedError(f"error in the stream: {str(body['error'])[:300]}")
                if self._first_s is None:
                    self._first_s = time.monotonic() - self._asked.began
                self._reply.take(body)
                if self._strip_usage and not body.get("choices"):
                    continue
            parts.append(event + b"\n\n")
        return parts, False

    async def _note(self) -> None:
        if self._desk.capture is not None:
            await self._desk.capture.note(self._asked, self._reply, self._first_s)


def _refusal_of(status: int, body: JsonObject) -> Refusal:
    """What another status than 200 comes to: the user's fault in OpenAI's words, or the server's."""
    if not 400 <= status < 500:
        return Refusal(502, "upstream_error", f"the student's server answered with status {status}")
    said = body.get("message") or body.get("detail") or "the student's server refuses the request"
    return Refusal(status, "invalid_request", (said if isinstance(said, str) else json.dumps(said))[:2000])


def _want_usage(body: JsonObject) -> bool:
    """Ask for the tokens of a stream; whether the user did not, and is not to see them."""
    if not body.get("stream"):
        return False
    options = body.get("stream_options")
    options = dict(options) if isinstance(options, dict) else {}
    if options.get("include_usage"):
        return False
    body["stream_options"] = options | {"include_usage": True}
    return True


async def _leaving(receive: Receive, work: asyncio.Task[None] | None, out: Out) -> None:
    """Wait until the user hangs up, and end the work for nobody."""
    while (await receive())["type"] != "http.disconnect":
        pass
    if work is not None and not out.over:
        work.cancel()


def error_response(refusal: Refusal, request_id: str = "") -> Response:
    """A refusal as a response."""
    headers = {"content-type": "application/json"}
    if request_id:
        headers["x-request-id"] = request_id
    if refusal.status == 429:
        headers["retry-after"] = "1"
    return Response(refusal.body(), refusal.status, headers)


def json_response(body: JsonObject) -> Response:
    """An answer of the gateway's own."""
    return Response(json.dumps(body).encode(), 200, {"content-type": "application/json"})
