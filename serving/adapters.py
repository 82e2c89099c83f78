"""Adapters on the vLLM servers of one base: on every server that answers, proven there, or on none.

A load reaches one server and is lost when it restarts (vllm-project/vllm#12174), so this is where the life of
an adapter is kept: `bring` a version, `drop` it, `stand` it on servers that come and go. A server that does
not answer is no obstacle: it gets what it lacks when it is back, before anybody is sent to it. A server that
answers and refuses is one: what had been loaded is undone.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from serving.adapter_files import write_neutral
from serving.adapter_store import AdapterStore, Published
from serving.engine import EngineError, EngineUnavailable, ServedBy
from serving.proof import Proof, prove, reference_of
from serving.settings import VllmSettings
from serving.vllm_server import ModelMissing, ServedModel, ServerAway, VllmServer

logger = logging.getLogger(__name__)

Reachable = dict[VllmServer, dict[str, ServedModel]]


class Adapters:
    """The servers of `settings` and the adapters on them. `base_dir` is the base for the proof."""

    def __init__(self, settings: VllmSettings, base_dir: Path, servers: Sequence[VllmServer]) -> None:
        if settings.store is None:
            raise EngineError("engine.vllm.store is not set: servers get adapters through that folder")
        self._settings = settings
        self._servers = tuple(servers)
        self._base_dir = base_dir
        self.store = AdapterStore(
            settings.store,
            settings.store_there,
            settings.prefix,
            settings.max_lora_rank,
            partial(
                reference_of,
                base_dir,
                device=settings.reference_device or ("cpu" if settings.sleepers else None),
            ),
        )

    def base(self) -> ServedModel:
        """The base that the servers serve. Raises `EngineUnavailable` when none answers, and `EngineError`
        when two serve different ones."""
        bases = {server.url: self._base_of(models) for server, models in self._reachable().items()}
        names = {base.name for base in bases.values()}
        if len(names) > 1:
            told = ", ".join(f"{url}: {base.name!r}" for url, base in bases.items())
            raise EngineError(f"the servers serve different bases ({told}); start them with one model")
        return next(iter(bases.values()))

    def publish(self, version: int, adapter: Path | None) -> Published:
        """See `AdapterStore.publish`; None is the base as an adapter that changes nothing."""
        if adapter is not None:
            return self.store.publish(version, adapter)
        with TemporaryDirectory() as folder:
            return self.store.publish(version, write_neutral(Path(folder), self._base_dir))

    def bring(self, published: Published) -> tuple[VllmServer, ...]:
        """Load and prove an adapter on every server that answers, or on none; returns the servers on which it
        was not loaded before. One that stops answering meanwhile is passed over.

        Raises `EngineError` with the server's reason, `EngineUnavailable` when no server answers.
        """
        self.store.check(published)
        placed: list[VllmServer] = []
        proven = 0
        try:
            for server, models in self._reachable().items():
                with _passed_over_if_away():
                    if self._put(server, models, published):
                        placed.append(server)
                    self._prove(server, models, published)
                    proven += 1
            if not proven:
                raise EngineUnavailable(f"no server answered while {published.name} was loaded")
        except EngineError as exc:
            self._take_off(placed, published.name)
            if isinstance(exc, EngineUnavailable):
                raise
            raise type(exc)(f"{published.name} is served nowhere now: {exc}") from exc
        return tuple(placed)

    def restore(self, server: VllmServer, published: Published) -> None:
        """Load and prove an adapter on one server that may lack it; if it is not proven, it is taken off."""
        self.store.check(published)
        models = server.models()
        placed = self._put(server, models, published)
        try:
            self._prove(server, models, published)
        except EngineError:
            if placed:
                self._take_off([server], published.name)
            raise

    def stand(self, model: str, published: Published | None) -> ServedBy:
        """Make one model stand on every server that answers (the base alone when nothing is published)."""
        ready: list[str] = []
        wanting: dict[str, str] = {}
        for server in self._servers:
            try:
                if published is not None:
                    self.restore(server, published)
                elif model not in server.models():
                    raise ModelMissing(f"{server.url} does not serve {model!r}")
                ready.append(server.url)
            except EngineError as exc:
                wanting[server.url] = str(exc)
        return ServedBy(model, tuple(ready), wanting)

    def drop(self, names: Collection[str], servers: Sequence[VllmServer] = ()) -> None:
        """Take adapters off servers (all of them where none are named); what is under way is finished."""
        for name in names:
            self._take_off(servers or self._servers, name)

    def loaded(self) -> dict[str, int]:
        """The versions' adapters on any server that answers, by name."""
        names = {name for models in self._answering().values() for name in models}
        versions = {name: self.store.version_of(name) for name in names}
        return {name: version for name, version in sorted(versions.items()) if version is not None}

    def _put(self, server: VllmServer, models: dict[str, ServedModel], published: Published) -> bool:
        """Load an adapter unless it is there; whether it was loaded now."""
        there = models.get(published.name)
        if there is not None:
            if there.root != published.path:
                raise EngineError(
                    f"{server.url} has loaded {published.name} from {there.root}, not from {published.path}; "
                    "unload it there, and give students that share servers a prefix each"
                )
            return False
        try:
            server.load(published.name, published.path, self._settings.load_timeout_s)
        except ServerAway:
            raise
        except EngineError:
            if published.name not in server.models():  # else another process was first
                raise
            return False
        return True

    def _prove(self, server: VllmServer, models: dict[str, ServedModel], published: Published) -> Proof:
        reference, base = published.manifest.reference, self._base_of(models).name
        models_asked = [] if self._settings.base_as_adapter else [base]
        questions = [
            (model, *probe)
            for model in [*models_asked, published.name]
            for probe in zip(reference.texts, reference.candidates, strict=True)
        ]

        def ask(question: tuple[str, Sequence[int], Sequence[int]]) -> list[float]:
            return server.log_probabilities(*question, self._settings.timeout_s)

        try:
            with ThreadPoolExecutor(len(questions)) as threads:  # at once: in one batch, as users' are
                scores = list(threads.map(ask, questions))
            proof = prove(
                reference,
                scores[: -len(reference.texts)] or None,
                scores[-len(reference.texts) :],
                self._settings.tolerance,
            )
        except ServerAway:
            raise
        except EngineError as exc:
            raise type(exc)(f"{server.url} is not proven to serve {published.name}: {exc}") from exc
        logger.info("%s serves %s, proven: %s", server.url, published.name, proof)
        return proof

    def _reachable(self) -> Reachable:
        answering, away = self._asked()
        if not answering:
            told = "; ".join(away) or "none is configured"
            raise EngineUnavailable(f"no vLLM server answers now (engine.vllm.replicas): {told}")
        return answering

    def _answering(self) -> Reachable:
        return self._asked()[0]

    def _asked(self) -> tuple[Reachable, list[str]]:
        """The servers that answer, and why others do not."""
        answering: Reachable = {}
        away: list[str] = []
        for server in self._servers:
            try:
                answering[server] = server.models()
            except ServerAway as exc:
                logger.warning("passed over: %s", exc)
                away.append(str(exc))
        return answering, away

    def _base_of(self, models: dict[str, ServedModel]) -> ServedModel:
        wanted = self._settings.model
        bases = [m for m in models.values() if m.parent is None and wanted in ("", m.name)]
        if not bases:
            raise EngineError(
                f"a server serves {sorted(models)}, not the base {wanted!r} (engine.vllm.model)"
            )
        return bases[0]

    @staticmethod
    def _take_off(servers: Sequence[VllmServer], name: str) -> None:
        for server in servers:
            with suppress(EngineError):
                server.unload(name)


@contextmanager
def _passed_over_if_away() -> Iterator[None]:
    """Ends the block quietly when a server does not answer; the log says so."""
    try:
        yield
    except ServerAway as exc:
        logger.warning("passed over: %s", exc)
