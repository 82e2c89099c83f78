"""vLLM's HTTP API (0.32: models, LoRA loading, completions) before an engine in this process.

With a `TransformersEngine` on a tiny student the numbers are those of a real model, so that proofs can pass
and fail as they do on vLLM. Faults are attributes that tests set.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Protocol

from agent.items import JsonObject
from serving.engine import Engine, EngineError, Sampling, Scorer
from streams.testing.http import KitHttpServer

BASE = 1
"""The base's version in the engine behind a server; adapters are numbered from 2."""
_RANDOM_STATE = threading.Lock()
"""A process has one random state: two servers in it must not sample at the same time."""


class Answering(Engine, Scorer, Protocol):
    """What can stand behind a server."""


class _Refused(EngineError):
    """An error of the API, with its status and type."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status, self.kind = status, kind


@dataclass
class FakeVllm:
    """A server in a thread of this process. `calls` counts requests by path, `answered` completions by model.

    `refuses`: loads fail with this message. `mute`: adapters load with 200 and the base answers under their
    name. `busy`: completions are answered with 503. `context`: the longest text in tokens.
    """

    engine: Answering
    base: str = "base"
    context: int = 128
    api_key: str = ""
    refuses: str = ""
    mute: bool = False
    busy: bool = False
    asleep: bool = field(default=False, init=False)
    calls: Counter[str] = field(default_factory=Counter, init=False)
    answered: Counter[str] = field(default_factory=Counter, init=False)

    def __post_init__(self) -> None:
        self._port = 0
        self._lock = threading.Lock()
        self._adapters: dict[str, tuple[str, int]] = {}
        self._next = BASE + 1
        self.engine.load(BASE, None)

    @property
    def url(self) -> str:
        """Its address, which stays the same when it is stopped and started again."""
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> FakeVllm:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen. A server that was stopped has lost its adapters, as vLLM has."""
        self._http = KitHttpServer(("127.0.0.1", self._port), type("Handler", (_Handler,), {"server_": self}))
        self._port = int(self._http.server_address[1])
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Be gone: connections end, the port is closed, adapters are forgotten."""
        self._http.shutdown()
        self._http.drop_connections()
        self._http.server_close()
        self._thread.join()
        with self._lock:
            for name in list(self._adapters):
                self._forget(name)

    def adapters(self) -> dict[str, str]:
        """The loaded adapters' paths by name."""
        with self._lock:
            return {name: path for name, (path, _) in self._adapters.items()}

    def reply(self, method: str, path: str, body: JsonObject) -> JsonObject:
        """What a request is answered with. Raises `_Refused`."""
        self.calls[path] += 1
        match (method, path):
            case ("GET", "/health"):
                return {}
            case ("GET", "/is_sleeping"):
                return {"is_sleeping": self.asleep}
            case ("POST", "/sleep?level=1&mode=wait" | "/wake_up"):
                self.asleep = path != "/wake_up"
                return {}
            case ("GET", "/v1/models"):
                return {"object": "list", "data": self._cards()}
            case ("POST", "/v1/load_lora_adapter"):
                return self._load(str(body["lora_name"]), str(body["lora_path"]))
            case ("POST", "/v1/unload_lora_adapter"):
                return self._unload(str(body["lora_name"]))
            case ("POST", "/v1/completions"):
                return self._complete(body)
        raise _Refused(404, "Not Found", "Not Found")

    def _cards(self) -> list[JsonObject]:
        cards: list[JsonObject] = [
            {"id": self.base, "root": "/base", "parent": None, "max_model_len": self.context}
        ]
        return cards + [
            {"id": name, "root": path, "parent": self.base} for name, path in self.adapters().items()
        ]

    def _load(self, name: str, path: str) -> JsonObject:
        if self.refuses:
            raise _Refused(500, "InternalServerError", self.refuses)
        with self._lock:
            if name in self._adapters:
                raise _Refused(400, "InvalidUserInput", f"The lora adapter '{name}' has already been loaded.")
            version = BASE
            if not self.mute:
                version, self._next = self._next, self._next + 1
                try:
                    self.engine.load(version, Path(path))
                except EngineError as exc:
                    raise _Refused(500, "InternalServerError", str(exc)) from exc
            self._adapters[name] = (path, version)
        return {}

    def _unload(self, name: str) -> JsonObject:
        with self._lock:
            if name not in self._adapters:
                raise _Refused(404, "NotFoundError", f"The lora adapter '{name}' cannot be found.")
            self._forget(name)
        return {}

    def _forget(self, name: str) -> None:
        _, version = self._adapters.pop(name)
        if version != BASE:
            self.engine.unload(version)

    def _complete(self, body: JsonObject) -> JsonObject:
        model, prompt = str(body["model"]), body["prompt"]
        version = self._version(model)
        if self.busy:
            raise _Refused(503, "ServiceUnavailableError", "busy")
        self.answered[model] += 1
        try:
            if isinstance(prompt, list):
                return {"model": model, "choices": [self._scored(prompt, body["logprob_token_ids"], version)]}
            sampling = Sampling(
                int(body["max_tokens"]), float(body["temperature"]), int(body["n"]), int(body["seed"])
            )
            with _RANDOM_STATE:
                texts = self.engine.generate([prompt], version, sampling)[0]
        except EngineError as exc:
            raise _Refused(400, "BadRequestError", str(exc)) from exc
        return {"model": model, "choices": [{"index": i, "text": text} for i, text in enumerate(texts)]}

    def _version(self, model: str) -> int:
        if model == self.base:
            return BASE
        with self._lock:
            if model not in self._adapters:
                raise _Refused(404, "NotFoundError", f"The model `{model}` does not exist.")
            return self._adapters[model][1]

    def _scored(self, text: Sequence[int], candidates: Sequence[int], version: int) -> JsonObject:
        scores = self.engine.log_probabilities([text], [candidates], version)[0]
        row = {f"token_id:{token}": score for token, score in zip(candidates, scores, strict=True)}
        return {"index": 0, "text": "", "logprobs": {"top_logprobs": [row]}}


class _Handler(BaseHTTPRequestHandler):
    server_: FakeVllm
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body leave in one packet
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:
        """Quiet: what was asked is in `calls`."""

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def _answer(self, method: str) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        key, status = self.server_.api_key, 200
        try:
            if key and self.headers.get("Authorization") != f"Bearer {key}":
                raise _Refused(401, "Unauthorized", "Unauthorized")
            body = self.server_.reply(method, self.path, json.loads(raw or b"{}"))
        except _Refused as exc:
            status = exc.status
            body = {"error": {"message": str(exc), "type": exc.kind, "param": None, "code": exc.status}}
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
