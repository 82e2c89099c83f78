"""A request to one of the replicas, and to another one where that fails before its answer begins."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import Self

import aiohttp

from agent.items import JsonObject
from serving.gateway.balance import Balancer
from serving.gateway.errors import Refusal
from serving.routes import Replica
from serving.settings import GatewaySettings

logger = logging.getLogger(__name__)

BROKEN = frozenset({500, 502, 503, 504})
BUSY = 429
CUT = (aiohttp.ClientError, TimeoutError, OSError)
"""What reading a stream raises when the replica breaks off."""


class Upstream:
    """The replicas' side of the gateway. Headers of users go no further than this: a replica sees a body that
    was read whole, its length, and what is written here."""

    def __init__(self, settings: GatewaySettings) -> None:
        self.balancer = Balancer(settings.eject_s, settings.max_eject_s)
        self._timeout = aiohttp.ClientTimeout(
            total=None,
            sock_connect=settings.connect_timeout_s,
            sock_read=settings.upstream_timeout_s,
        )
        self._session: aiohttp.ClientSession | None = None
        key = settings.upstream_api_key.get_secret_value()
        self._headers = {"content-type": "application/json", "accept-encoding": "identity"}
        if key:
            self._headers["authorization"] = f"Bearer {key}"

    async def send(
        self, replicas: Sequence[Replica], model: str, path: str, body: JsonObject, request_id: str
    ) -> Sent:
        """The first answer of a replica that can give one. Raises `Refusal` when none can."""
        data = json.dumps(body).encode()
        tried: set[str] = set()
        stale = False
        refusal = Refusal(502, "upstream_unavailable", "no replica of the student can be reached")
        while (url := self.balancer.pick(replicas, model, tried)) is not None:
            sent = Sent(self.balancer, url, model)
            try:
                await sent.open(self._connections(), url + path, data, self._headers_of(request_id))
            except TimeoutError as exc:
                self._failed(url, exc)
                tried.add(url)
                refusal = Refusal(504, "upstream_timeout", "the student did not answer in time")
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as exc:
                if stale or isinstance(exc, aiohttp.ClientConnectorError):
                    self._failed(url, exc)
                    tried.add(url)
                stale = not stale  # a connection that was kept and closed meanwhile: once more
            except (aiohttp.ClientError, OSError) as exc:
                self._failed(url, exc)
                tried.add(url)
            else:
                again = await self._another(sent)
                if again is None:
                    return sent
                tried.add(url)
                refusal = again
        raise refusal

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    def _connections(self) -> aiohttp.ClientSession:
        if self._session is None:  # it belongs to the event loop that it was made in
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=10),
                timeout=self._timeout,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
            )
        return self._session

    def _headers_of(self, request_id: str) -> dict[str, str]:
        return {**self._headers, "x-request-id": request_id}

    def _failed(self, url: str, exc: Exception) -> None:
        logger.warning("replica %s: %s: %s", url, type(exc).__name__, exc)
        self.balancer.failed(url)

    async def _another(self, sent: Sent) -> Refusal | None:
        """Why another replica is to be asked; None when this one's answer stands."""
        status = sent.status
        if status in BROKEN:
            self.balancer.failed(sent.url)
            why = Refusal(502, "upstream_error", f"the student's server failed with status {status}")
        elif status == BUSY:
            why = Refusal(429, "rate_limit_exceeded", "the student is busy; try again later")
        elif status == 404:  # paths are fixed: the replica does not know the model
            self.balancer.lost(sent.url, sent.model)
            why = Refusal(503, "model_not_loaded", "no replica serves this version now; try again later")
        elif status in (401, 403):
            self.balancer.failed(sent.url)
            why = Refusal(502, "upstream_refused", "the student's server refuses this gateway's key")
        else:
            self.balancer.worked(sent.url, sent.model)
            return None
        logger.warning("replica %s answers %s for %s", sent.url, status, sent.model)
        await sent.close()
        return why


class Sent:
    """A request that is under way at a replica; a context manager that ends it."""

    def __init__(self, balancer: Balancer, url: str, model: str) -> None:
        self.url, self.model = url, model
        self._balancer = balancer
        self._response: aiohttp.ClientResponse | None = None
        self._open = False
        self.body = b""

    async def open(
        self, session: aiohttp.ClientSession, address: str, data: bytes, headers: Mapping[str, str]
    ) -> None:
        """Send, and read the head of the answer; all of it where it is not a stream."""
        self._balancer.began(self.url)
        self._open = True
        try:
            self._response = await session.post(address, data=data, headers=headers, allow_redirects=False)
            if not self.streams:
                self.body = await self._response.read()
        except BaseException:
            await self.close()
            raise

    @property
    def response(self) -> aiohttp.ClientResponse:
        """The answer's head. Raises `RuntimeError` before there is one."""
        if self._response is None:
            raise RuntimeError("the request was not opened")
        return self._response

    @property
    def status(self) -> int:
        """The answer's status."""
        return self.response.status

    @property
    def streams(self) -> bool:
        """Whether the answer is a stream of events."""
        return str(self.response.headers.get("content-type", "")).startswith("text/event-stream")

    def chunks(self) -> AsyncIterator[bytes]:
        """A stream's bytes, as they come. Raises `CUT` where it breaks off."""
        return self.response.content.iter_any()

    async def close(self) -> None:
        """End the request; one that is not over is broken off, which stops the replica's work on it."""
        self._end()
        if self._response is not None:
            self._response.close()  # back into the pool where it was read to its end

    def _end(self) -> None:
        if self._open:
            self._open = False
            self._balancer.ended(self.url)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
