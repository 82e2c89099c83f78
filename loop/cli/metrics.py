"""`skillloop metrics`: the figures of `status` for Prometheus, read anew at each scrape."""

from __future__ import annotations

import logging
import signal
import threading
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from rich.console import Console

from loop.backends import find_log, find_store
from loop.cli.show_rounds import require_student
from loop.cli.status import dead_letters, lag, unknown_versions
from loop.config import Config
from loop.errors import LoopError
from loop.workers.approve import waiting
from loop.workers.record import open_rounds
from serving.routes import activities
from streams.errors import StreamsError
from streams.state.ledger import spent_on
from streams.state.positions import TopicPositions
from streams.state.redrives import refusals, unsent
from streams.state.store import StateStore
from streams.topics import MONITOR_GROUP

logger = logging.getLogger(__name__)

Rows = Iterable[tuple[tuple[str, ...], float]]


class PortTaken(LoopError):
    """The metrics cannot be served at the address that was asked for."""


class RunCollector(Collector):
    """A run's figures. What cannot be read is left out, and its `skillloop_readable` is 0: a scrape never
    fails because a dependency is away."""

    def __init__(self, config: Config, root: Path) -> None:
        self._config, self._root = config, root.resolve()
        self._student = config.student.name
        self._store: StateStore | None = None

    def collect(self) -> Iterator[Metric]:
        """One scrape's figures."""
        readable = []
        for name, read in (("store", self._of_store), ("log", self._of_log), ("gateways", self._of_gateways)):
            try:
                found = list(read())
            except (StreamsError, LoopError, OSError) as exc:
                logger.warning("the %s: %s", name, exc)
                found, fine = [], 0.0
            else:
                fine = 1.0
            readable.append(((name,), fine))
            yield from found
        yield _gauge("readable", "1 where the source of figures could be read.", readable, "source")

    def _opened(self) -> StateStore:
        self._store = self._store or find_store(self._config, self._root)
        return self._store

    def _of_store(self) -> Iterator[Metric]:
        store = self._opened()
        rounds = open_rounds(store)
        require_student(rounds, self._student, self._root)
        route = rounds.route(self._student)
        if route is not None:
            yield _gauge("served_version", "The version that users get.", [((), route[0])])
        states = Counter(round_.state for round_ in rounds.list(self._student))
        yield _gauge("rounds", "Rounds by state.", [((s,), n) for s, n in states.items()], "state")
        aside = len(rounds.unreadable(self._student))
        yield _gauge("rounds_set_aside", "Rounds whose record cannot be read.", [((), aside)])
        people = len(list(waiting(store, rounds, self._student)))
        yield _gauge("waits_for_person", "Rounds that a person must decide on.", [((), people)])
        yield _gauge("outbox_unsent", "Records that the log has not taken yet.", [((), unsent(store))])
        refused = Counter(topic for topic, _ in refusals(store))
        rows: Rows = [((topic,), count) for topic, count in refused.items()]
        yield _gauge("outbox_refused", "Records that the log refused for good.", rows, "topic")
        gaps = len(list(TopicPositions(store).gaps(MONITOR_GROUP)))
        yield _gauge("gaps", "Places where records were lost before they were read.", [((), gaps)])
        marks = store.watermarks(self._student)
        rows = [((str(version),), outputs) for version, (outputs, _) in marks.items()]
        yield _gauge("answers_watched", "Answers that the profile counts.", rows, "version")
        unknown = unknown_versions(store, rounds, self._student)
        rows = [((str(version),), count) for version, count in unknown.items()]
        yield _gauge("answers_of_unknown_versions", "Answers of versions not made here.", rows, "version")
        spent: defaultdict[str, float] = defaultdict(float)
        for entry in spent_on(store, self._student, datetime.now(UTC).date().isoformat()):
            spent[entry.activity] += entry.usage.usd
        rows = [((activity,), usd) for activity, usd in spent.items()]
        yield _gauge("spent_today_usd", "Spent since midnight UTC, in US dollars.", rows, "activity")

    def _of_log(self) -> Iterator[Metric]:
        with find_log(self._config, self._root) as log:
            topic = self._config.monitor.topic
            behind: Rows = [((topic,), lag(self._config, log, self._opened()))]
            yield _gauge("lag_records", "Records that the monitor has not folded yet.", behind, "topic")
            letters: Rows = [((name,), count) for name, count in dead_letters(log).items()]
            yield _gauge("dead_letters", "Records on dead-letter topics.", letters, "topic")

    def _of_gateways(self) -> Iterator[Metric]:
        alive = list(activities(self._root))
        yield _gauge("gateways", "Gateways that reported within the last seconds.", [((), len(alive))])
        rows: Rows = [((a.gateway, what), n) for a in alive for what, n in a.captured.items()]
        text = "What became of the answers, since the gateway's start."
        yield _gauge("gateway_captured", text, rows, "gateway", "what")
        for name, field in (("requests", "ended"), ("failures", "failed"), ("in_flight", "are under way")):
            rows = [((a.gateway, m), n) for a in alive for m, n in getattr(a, name).items()]
            yield _gauge(f"gateway_{name}", f"Requests that {field}, by model.", rows, "gateway", "model")


def _gauge(name: str, text: str, rows: Rows, *labels: str) -> Metric:
    gauge = GaugeMetricFamily(f"skillloop_{name}", text, labels=labels)
    for values, value in rows:
        gauge.add_metric(values, value)
    return gauge


def serve_metrics(config: Config, root: Path, host: str, port: int, console: Console) -> None:
    """Serve until SIGTERM or SIGINT. Raises `PortTaken`."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(RunCollector(config, root))
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as exc:
        raise PortTaken(f"cannot listen on {host}:{port}: {exc}; choose another with --port") from exc
    told = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: told.set())
    console.print(f"metrics at http://{host}:{server.server_port}/metrics; stop with Ctrl-C", highlight=False)
    told.wait()
    server.shutdown()
    thread.join()
