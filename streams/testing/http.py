"""The server under the kits that speak HTTP: it ends at once, and its clients may leave when they like."""

from __future__ import annotations

import socket
import sys
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Request = socket.socket | tuple[bytes, socket.socket]


class KitHttpServer(ThreadingHTTPServer):
    """Serves each connection in a thread of its own, none of which keeps the process alive."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._open: set[Request] = set()
        super().__init__(address, handler)

    def process_request(self, request: Request, client_address: object) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Request) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def drop_connections(self) -> None:
        """End idle keep-alive connections: their threads wait for a next request."""
        for connection in list(self._open):
            if isinstance(connection, socket.socket):
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Request, client_address: object) -> None:
        """A client that disconnects is not the server's error."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)
