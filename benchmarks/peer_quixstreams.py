"""Peer for benchmarks/ingest.py: quixstreams counts the same topic per key in tumbling windows. Runs in an
environment of its own."""

import json
import os
import sys
import tempfile
import time

from quixstreams import Application


def main(bootstrap: str, topic: str, count: int) -> None:
    """Count until `count` events have come, then print events per second and stop."""
    os.chdir(tempfile.mkdtemp(prefix="quixstreams-"))
    app = Application(
        broker_address=bootstrap,
        consumer_group=f"quix-{time.time_ns()}",
        auto_offset_reset="earliest",
        auto_create_topics=True,
        loglevel="WARNING",
    )
    frame = app.dataframe(app.topic(topic, value_deserializer="json"))
    seen = {"count": 0, "began": 0.0, "cpu": 0.0}

    def note(_: object) -> None:
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
            app.stop()

    frame = frame.tumbling_window(duration_ms=60_000, grace_ms=3_600_000).count().current()
    frame.update(note)
    app.run()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
