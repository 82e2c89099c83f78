"""A gateway with scripted replicas and a log, all on real sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from serving.gateway.serve import GatewayServer
from serving.http import HttpServer
from serving.routes import Replica, RouteFile, RouteTable, Share
from serving.settings import CaptureSettings, GatewaySettings
from serving.testing.replica import ScriptedReplica
from streams.codec import Codec
from streams.events import Event, StudentOutput
from streams.local_log import LocalLog
from streams.log import EventLog

PROMPT = CaptureSettings(feedback_wait_s=0)


@dataclass
class Site:
    """What a test looks at. `stop` ends the gateway, which ships its spool."""

    folder: Path
    gateway: GatewayServer
    replicas: Sequence[ScriptedReplica]
    urls: Sequence[str]
    stop: Callable[[], None]

    def route(self, *versions: int, weights: Sequence[float] = ()) -> int:
        """Serve these versions, the first as champion."""
        return write_route(self.folder, self.urls, *versions, weights=weights)

    def ask(self, **body: Any) -> httpx.Response:
        """A question, as a user asks it."""
        return httpx.post(f"{self.gateway.url}/v1/chat/completions", json=question(**body), timeout=20)


def write_route(folder: Path, urls: Sequence[str], *versions: int, weights: Sequence[float] = ()) -> int:
    shares = [
        Share(version=version, model=f"student-v{version}", weight=weight)
        for version, weight in zip(versions, weights or [1.0] * len(versions), strict=True)
    ]
    replicas = tuple(Replica(url=url) for url in urls)
    return RouteFile(folder).write(RouteTable(student="demo", shares=tuple(shares), replicas=replicas))


def question(text: str = "2 + 2?", **body: Any) -> dict[str, Any]:
    return {"model": "demo", "messages": [{"role": "user", "content": text}], **body}


def loaded(*versions: int, **script: Any) -> ScriptedReplica:
    """A replica that serves these versions."""
    return ScriptedReplica({f"student-v{version}" for version in versions or (1,)}, **script)


@contextmanager
def site(
    folder: Path,
    *replicas: ScriptedReplica,
    open_log: Callable[[], EventLog] | None = None,
    captured: CaptureSettings = PROMPT,
    deployed: bool = True,
    **settings: Any,
) -> Iterator[Site]:
    """A running gateway before running replicas, version 1 deployed or none yet."""
    made = replicas or (loaded(1),)
    with ExitStack() as stack:
        urls = [stack.enter_context(HttpServer(replica, "127.0.0.1", 0, 0.2)).url for replica in made]
        if deployed:
            write_route(folder, urls, 1)
        server = GatewayServer(
            GatewaySettings(port=0, captured=captured, **settings),
            folder,
            open_log or (lambda: LocalLog(folder / "log.db")),
        )
        running = stack.enter_context(ExitStack())
        running.enter_context(server)
        yield Site(folder, server, made, urls, running.close)


def events(folder: Path, topic: str = "student-outputs") -> list[Event]:
    """What is in the log."""
    with LocalLog(folder / "log.db") as log:
        return [Codec().decode(record) for record in log.read(topic)]


def outputs(folder: Path) -> list[StudentOutput]:
    """The captured answers in the log, in the order of their time."""
    answers = [event for event in events(folder) if isinstance(event, StudentOutput)]
    return sorted(answers, key=lambda answer: answer.occurred_at)


@dataclass
class Heard:
    """What a user got: the response's id, the models that its parts named, its text, whether it is whole."""

    response_id: str
    models: set[str]
    text: str
    whole: bool


def text_in(choice: dict[str, Any]) -> str:
    """The text of a choice: of a chat or not, whole or a chunk's."""
    part = choice.get("message") or choice.get("delta")
    return str(choice["text"] if part is None else part["content"])


CHAT = ("/v1/chat/completions", question())


async def converse(
    client: httpx.AsyncClient, stream: bool, asked: tuple[str, dict[str, Any]] = CHAT
) -> Heard:
    """Ask, streamed or not. Raises `httpx.HTTPError` for a request that fails."""
    path, body = asked
    async with client.stream("POST", path, json=body | {"stream": stream}) as response:
        if not stream:
            data = json.loads(await response.aread())
            response.raise_for_status()
            return Heard(data["id"], {data["model"]}, text_in(data["choices"][0]), True)
        response.raise_for_status()
        heard = Heard("", set(), "", False)
        async for line in response.aiter_lines():
            data = line.removeprefix("data: ")
            if data == "[DONE]":
                heard.whole = True
            elif data:
                chunk = json.loads(data)
                heard.response_id = chunk["id"]
                heard.models.add(chunk["model"])
                heard.text += text_in(chunk["choices"][0])
        return heard


async def crowd(
    url: str,
    clients: int,
    until: Callable[[], bool],
    asked: tuple[str, dict[str, Any]] = CHAT,
    streams: bool = True,
    heard: list[Heard] | None = None,
) -> tuple[list[Heard], list[Exception]]:
    """So many users who ask one question after the other, every other one streamed, until told to stop."""
    heard = [] if heard is None else heard
    failed: list[Exception] = []

    async def user(client: httpx.AsyncClient, number: int) -> None:
        while not until():
            try:
                heard.append(await converse(client, streams and number % 2 == 0, asked))
            except (httpx.HTTPError, KeyError, ValueError) as exc:
                failed.append(exc)
                await asyncio.sleep(0.01)

    async with httpx.AsyncClient(
        base_url=url, timeout=20, limits=httpx.Limits(max_connections=None)
    ) as client:
        await asyncio.gather(*(user(client, number) for number in range(clients)))
    return heard, failed
