"""An ASGI application on a socket: until a signal, or in a thread. Errors of the protocol are JSON, as
OpenAI's API has them."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self

import uvicorn
import uvloop
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.engine import EngineError

FIRST_REQUEST_S = 30.0
"""A connection whose first request has not begun by then is closed."""
_BACKLOG = 2048
_HEADER_BYTES = 65_536
_BAD_REQUEST = (
    b'{"error": {"message": "this is not HTTP", "type": "invalid_request_error", "param": null, '
    b'"code": "invalid_http"}}'
)
_BAD_RESPONSE = b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
_BAD_RESPONSE = _BAD_RESPONSE % len(_BAD_REQUEST) + b"connection: close\r\n\r\n" + _BAD_REQUEST


class CannotListen(EngineError):
    """The address is taken or is not this machine's."""


class _Protocol(HttpToolsProtocol):
    """Bounds what is no body (head, chunk sizes, trailers), which the parser would collect without end."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._patience = self.loop.call_later(FIRST_REQUEST_S, self._close_unused)
        self._headers_over = False
        self._besides = 0

    def connection_lost(self, exc: Exception | None) -> None:
        self._patience.cancel()
        super().connection_lost(exc)

    def _close_unused(self) -> None:
        if self.cycle is None:
            self.transport.close()

    def data_received(self, data: bytes) -> None:
        self._besides += len(data)
        super().data_received(data)
        if self._besides > _HEADER_BYTES and not self.transport.is_closing():
            self.send_400_response("")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._headers_over = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._headers_over:  # a trailer is no header
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._headers_over, self._besides = True, 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._besides = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._besides = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        begun = self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete
        if not (begun or self.pipeline):  # a response that is under way is cut, not mixed with this one
            self.transport.write(_BAD_RESPONSE)
        self.transport.close()


def run(work: Coroutine[Any, Any, None]) -> None:
    """What `asyncio.run` does, on uvloop."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work)


class HttpServer:
    """Serves `app`; with `port` 0 the system chooses. A context manager serves in a thread.

    `grace_s`: how long requests that are under way may take after the end was asked for.
    """

    def __init__(self, app: ASGIApp, host: str, port: int, grace_s: float = 30.0) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._socket = socket.create_server((host, port), family=family, backlog=_BACKLOG)
        except OSError as exc:
            raise CannotListen(f"cannot listen on {host}:{port}: {exc}; choose another gateway.port") from exc
        # asyncio does so only for sockets that name their protocol; without it small writes wait 40 ms.
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        config = uvicorn.Config(
            app,
            http=_Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            backlog=_BACKLOG,
            timeout_keep_alive=60,
            timeout_graceful_shutdown=int(grace_s),
        )
        self._server = uvicorn.Server(config)
        self._thread: threading.Thread | None = None
        self.host = host
        self.port = int(self._socket.getsockname()[1])

    @property
    def url(self) -> str:
        """The address, without a slash at its end."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    async def serve(self) -> None:
        """Serve until SIGINT or SIGTERM (in the main thread), or until `ask_to_stop`."""
        await self._server.serve(sockets=[self._socket])

    def ask_to_stop(self) -> None:
        """End when what is under way has ended."""
        self._server.should_exit = True

    def stop(self) -> None:
        """End, and wait until the thread has."""
        self.ask_to_stop()
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=lambda: run(self.serve()), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
