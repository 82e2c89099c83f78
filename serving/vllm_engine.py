"""The engine port over HTTP: one or several vLLM servers, asked by many requests at a time.

Nothing of the student is in this process but its answers. Each prompt goes to the server with the fewest
requests under way; one that does not answer is left alone for `AWAY_S` seconds and the prompt goes to
another, until `timeout_s` is over. A server that has lost an adapter (it was started anew) gets it again,
proven, before the prompt is put once more.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from serving.adapter_files import adapter_sha256
from serving.adapter_store import Published
from serving.adapters import Adapters
from serving.engine import EngineError, EngineUnavailable, Sampling, ServedBy, StillAsleep
from serving.settings import VllmSettings
from serving.vllm_server import ModelMissing, ServerAway, VllmServer

AWAY_S = 2.0
FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 5.0
SEEDS = 2**31

Reply = TypeVar("Reply")


@dataclass(frozen=True)
class _Loaded:
    """A version as this engine loaded it: the base has no hash and nothing published. `placed`: the servers
    that had not had it before."""

    model: str
    sha256: str | None = None
    published: Published | None = None
    placed: tuple[VllmServer, ...] = ()


class VllmEngine:
    """A student served by the vLLM servers of `settings`; `base_dir` is its base, for the proof alone.
    Thread-safe.

    Raises `EngineUnavailable` where no server answers, and `EngineError` with a server's own words where it
    refuses. Sampled answers repeat for equal arguments as far as vLLM's do: on a GPU, rounding depends on
    what else is in its batch.
    """

    def __init__(self, settings: VllmSettings, base_dir: Path) -> None:
        if not settings.replicas:
            raise EngineError("engine.vllm.replicas is empty: name the vLLM servers of the student")
        key = settings.api_key.get_secret_value()
        self._settings = settings
        self._servers = [
            VllmServer(url, key, settings.concurrency + 4, url in settings.sleepers)
            for url in settings.replicas
        ]
        self._adapters = Adapters(settings, base_dir, self._servers)
        self._threads = ThreadPoolExecutor(settings.concurrency * len(self._servers), "vllm")
        self._loading = threading.RLock()
        self._balance = _Balance(self._servers)
        self._loaded: dict[int, _Loaded] = {}
        self._restores: dict[tuple[VllmServer, str], float] = {}

    def close(self) -> None:
        """End all connections; adapters stay on the servers."""
        self._threads.shutdown(cancel_futures=True)
        for server in self._servers:
            server.close()

    def load(self, version: int, adapter: Path | None) -> None:
        """See `serving.engine.Engine.load`: on every server that answers, proven, or on none."""
        sha256 = None if adapter is None else adapter_sha256(adapter)
        with self._loading:
            known = self._loaded.get(version)
            if known is not None:
                if known.sha256 != sha256:
                    raise EngineError(
                        f"version {version} is loaded with other files; "
                        "versions are immutable, register a new one"
                    )
                return
            if adapter is None and not self._settings.base_as_adapter:
                self._loaded[version] = _Loaded(self._adapters.base().name)
                return
            published = self._adapters.publish(version, adapter)
            placed = self._adapters.bring(published)
            self._loaded[version] = _Loaded(published.name, sha256, published, placed)

    def unload(self, version: int) -> None:
        """Forget a version. It is taken off the servers to which this engine brought it: what another process
        has loaded may be what users get."""
        with self._loading:
            known = self._loaded.pop(version, None)
        if known is not None and known.placed:
            self._adapters.drop([known.model], known.placed)

    def versions(self) -> tuple[int, ...]:
        """The versions that this engine has loaded, ascending."""
        return tuple(sorted(self._loaded.copy()))

    def generate(
        self, prompts: Sequence[str], version: int, sampling: Sampling = Sampling()
    ) -> list[list[str]]:
        """Answers per prompt, shape (len(prompts), sampling.samples). Each prompt has `timeout_s` seconds
        from its first request."""
        loaded = self._need(version)

        def ask(place: int, prompt: str) -> list[str]:
            # One seed for all would give a question that is put several times the same answer each time.
            seed = (sampling.seed * 1_000_003 + place * sampling.samples) % SEEDS
            own = replace(sampling, seed=seed)
            return self._ask(loaded, lambda server, s: server.complete(loaded.model, prompt, own, s))

        return list(self._threads.map(ask, range(len(prompts)), prompts))

    def log_probabilities(
        self, texts: Sequence[Sequence[int]], candidates: Sequence[Sequence[int]], version: int
    ) -> list[list[float]]:
        """See `serving.engine.Scorer`."""
        loaded = self._need(version)

        def ask(text: Sequence[int], tokens: Sequence[int]) -> list[float]:
            return self._ask(
                loaded, lambda server, s: server.log_probabilities(loaded.model, text, tokens, s)
            )

        return list(self._threads.map(ask, texts, candidates))

    def stand(self, version: int) -> ServedBy:
        """See `serving.engine.LiveEngine`."""
        loaded = self._need(version)
        with self._loading:
            return self._adapters.stand(loaded.model, loaded.published)

    def models(self) -> Mapping[str, int]:
        """See `serving.engine.LiveEngine`."""
        return self._adapters.loaded()

    def take_off(self, models: Collection[str]) -> None:
        """See `serving.engine.LiveEngine`."""
        with self._loading:
            self._adapters.drop(models)
            self._loaded = {
                version: kept for version, kept in self._loaded.items() if kept.model not in models
            }

    def sleep(self) -> None:
        """See `serving.engine.LiveEngine`."""
        # None is sent to sleep where another is away: users would wait for nothing, at each attempt.
        for server in [server for server in self._sleepers() if not server.asleep()]:
            server.sleep(self._settings.sleep_timeout_s)

    def wake(self) -> tuple[str, ...]:
        """See `serving.engine.LiveEngine`."""
        woken: list[str] = []
        failed: dict[str, EngineError] = {}
        for server in self._sleepers():
            try:
                if server.asleep():
                    server.wake(self._settings.sleep_timeout_s)
                    woken.append(server.url)
            except EngineError as exc:
                failed[server.url] = exc
        if failed:
            raise StillAsleep("; ".join(map(str, failed.values())), tuple(failed))
        return tuple(woken)

    def _sleepers(self) -> list[VllmServer]:
        return [server for server in self._servers if server.sleeps]

    def _need(self, version: int) -> _Loaded:
        loaded = self._loaded.get(version)  # without the lock: a load may take minutes, in which others ask
        if loaded is None:
            raise EngineError(f"version {version} is not loaded; loaded are {self.versions()}")
        return loaded

    def _ask(self, loaded: _Loaded, request: Callable[[VllmServer, float], Reply]) -> Reply:
        """Put one request until it is answered, refused, or out of time."""
        end, wait_s, unfit = time.monotonic() + self._settings.timeout_s, FIRST_WAIT_S, set[VllmServer]()
        while True:
            began = time.monotonic()
            with self._balance.turn() as server:
                try:
                    return request(server, end - began)
                except ServerAway as exc:
                    why: EngineError = exc
                    self._balance.away(server)
                except ModelMissing as exc:
                    why = self._restored(server, loaded, began) or exc
            if why.__class__ is not ModelMissing and not isinstance(why, ServerAway):
                unfit.add(server)
            if len(unfit) == len(self._servers):
                raise why
            if time.monotonic() + wait_s > end:
                limit = f"no answer within {self._settings.timeout_s:g} s"
                raise EngineUnavailable(f"{limit}; the last server's reason: {why}") from why
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    def _restored(self, server: VllmServer, loaded: _Loaded, since: float) -> EngineError | None:
        """Give a server an adapter that it has lost, once for all requests that miss it; why not, if not."""
        if loaded.published is None:
            return EngineError(f"{server.url} no longer serves {loaded.model!r}: was its base changed?")
        key = (server, loaded.model)
        with self._loading:
            if self._restores.get(key, -1.0) >= since:
                return None
            try:
                self._adapters.restore(server, loaded.published)
            except EngineError as exc:
                self._balance.away(server)
                return exc
            self._restores[key] = time.monotonic()
        return None


class _Balance:
    """Who is asked next: the server with the fewest requests under way, of those that answer."""

    def __init__(self, servers: Sequence[VllmServer]) -> None:
        self._servers = tuple(servers)
        self._lock = threading.Lock()
        self._under_way: Counter[VllmServer] = Counter()
        self._back: dict[VllmServer, float] = {}

    @contextmanager
    def turn(self) -> Iterator[VllmServer]:
        """A server for one request. Where all are away, the one that has been for longest is tried."""
        with self._lock:
            now = time.monotonic()
            server = min(
                self._servers,
                key=lambda s: (max(0.0, self._back.get(s, 0.0) - now), self._under_way[s]),
            )
            self._under_way[server] += 1
        try:
            yield server
        finally:
            with self._lock:
                self._under_way[server] -= 1

    def away(self, server: VllmServer) -> None:
        """Leave a server alone for a while."""
        with self._lock:
            self._back[server] = time.monotonic() + AWAY_S
