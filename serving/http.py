"""An ASGI application on a socket: until a signal, or in a thread. Errors of the protocol are JSON, as
OpenAI's API has them."""

from __future__ import annotations

import asyncio
import socket
import threading
from types import TracebackType
from typing import Self

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from serving.engine import EngineError

FIRST_REQUEST_S = 30.0
"""A connection whose first request has not begun by then is closed."""
_BACKLOG = 2048
_HEADER_BYTES = 65_536
_BAD_REQUEST = (
    b'{"error": {"message": "this is not HTTP", "type": "invalid_request_error", "param": null, '
    b'"code": "invalid_http"}}'
)


class CannotListen(EngineError):
    """The address is taken or is not this machine's."""


class _Protocol(H11Protocol):
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._patience = self.loop.call_later(FIRST_REQUEST_S, self._close_unused)

    def connection_lost(self, exc: Exception | None) -> None:
        self._patience.cancel()
        super().connection_lost(exc)

    def _close_unused(self) -> None:
        if self.cycle is None:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(_BAD_REQUEST)),
            (b"connection", b"close"),
        ]
        events = (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=_BAD_REQUEST),
            h11.EndOfMessage(),
        )
        for event in events:
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


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
            h11_max_incomplete_event_size=_HEADER_BYTES,
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
        self._thread = threading.Thread(target=lambda: asyncio.run(self.serve()), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
