"""Peer for benchmarks/ingest.py: bytewax counts the same topic per key in tumbling windows. Runs in an
environment of its own."""

import json
import os
import sys
import time
from datetime import UTC, datetime, timedelta

import bytewax.operators as op
import bytewax.operators.windowing as win
from bytewax.connectors.kafka import KafkaSource
from bytewax.dataflow import Dataflow
from bytewax.run import cli_main


def main(bootstrap: str, topic: str, count: int) -> None:
    """Count until `count` events have come, then print events per second and end the process."""
    seen = {"count": 0, "began": 0.0, "cpu": 0.0}

    def parse(message: object) -> tuple[str, dict]:
        if not seen["began"]:
            seen["began"], seen["cpu"] = time.perf_counter(), time.process_time()
        seen["count"] += 1
        if seen["count"] == count:
            seconds, cpu_s = time.perf_counter() - seen["began"], time.process_time() - seen["cpu"]
            print(
                json.dumps(
                    {
                        "events_per_s": round((count - 1) / seconds),
                        "events_per_cpu_s": round((count - 1) / cpu_s),
                    }
                ),
                flush=True,
            )
            os._exit(0)
        return message.key.decode(), json.loads(message.value)

    flow = Dataflow("ingest")
    stream = op.input("in", flow, KafkaSource([bootstrap], [topic], batch_size=5000))
    keyed = op.map("parse", stream, parse)

    def event_time(pair: tuple[str, dict]) -> datetime:
        return datetime.fromisoformat(pair[1]["occurred_at"])

    clock = win.EventClock(ts_getter=event_time, wait_for_system_duration=timedelta(hours=1))
    windower = win.TumblingWindower(length=timedelta(minutes=1), align_to=datetime(2026, 1, 1, tzinfo=UTC))
    counted = win.count_window("count", keyed, clock, windower, lambda pair: pair[0])
    op.inspect("out", op.filter("none", counted.down, lambda _: False))
    cli_main(flow)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
