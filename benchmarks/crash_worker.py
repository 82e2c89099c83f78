"""One worker of the crash test: consumes synthetic answers from Kafka into the store and relays the outbox,
until it is killed."""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from streams.consume import ConsumeLoop, ConsumeSettings, Effects
from streams.crash import crash_point
from streams.events import Event
from streams.kafka.log import KafkaLog
from streams.kafka.settings import KafkaSettings
from streams.log import LogUnavailable, MemberFenced, Outgoing
from streams.state.outbox import OutboxRelay, RelaySettings
from streams.state.store import StateStore, StoreUnavailable
from streams.testing.synthetic import diagnose
from streams.watchdog import EXIT_STUCK

CONSUME_POINTS = ("consume.after-poll", "consume.before-commit", "consume.after-commit")
RELAY_POINTS = ("outbox.before-append", "outbox.after-append")
RELAY = RelaySettings(batch=100, lease_s=15.0, send_within_s=2.0)


@dataclass(frozen=True)
class Job:
    """What a worker works on; `prefix` makes the run's topics and group its own on a shared broker."""

    bootstrap: str
    prefix: str
    store_url: str
    log_path: str

    @property
    def topic(self) -> str:
        """The topic with the answers."""
        return f"{self.prefix}.student-outputs"

    def settings(self, instance: str) -> KafkaSettings:
        """Short times, since a run must be over in seconds; the relay's lease is long enough for them."""
        return KafkaSettings(
            bootstrap_servers=self.bootstrap,
            instance=instance,
            start_timeout_s=20,
            request_timeout_s=4,
            delivery_timeout_s=5,
            session_timeout_s=6,
        )

    def own(self, records: Sequence[Outgoing]) -> list[Outgoing]:
        """The same records for this run's topics."""
        return [replace(record, topic=f"{self.prefix}.{record.topic}") for record in records]


def work(job: Job, instance: str, crash_at: str | None) -> None:
    """Run indefinitely; dies by SIGKILL at the crash point, or from outside."""
    logging.basicConfig(
        filename=job.log_path,
        level=logging.WARNING,
        format=f"%(asctime)s {instance} {os.getpid()} %(message)s",
    )
    logging.getLogger("kafka.coordinator").setLevel("INFO")
    faulthandler.register(signal.SIGUSR1, file=Path(job.log_path).open("a"), all_threads=True)
    crash = crash_point(crash_at)

    def handle(events: Sequence[Event]) -> Effects:
        effects = diagnose(events)
        return replace(effects, outbox=job.own(effects.outbox))

    settings = ConsumeSettings(
        group=job.prefix, topics=(job.topic,), max_records=100, backoff_s=0.1, backoff_max_s=1.0
    )
    store = StateStore(job.store_url)
    try:
        log = KafkaLog(job.settings(instance))
        loop = ConsumeLoop(log, store, handle, settings, crash=crash)
    except LogUnavailable:  # the broker was away for longer than a start waits
        logging.exception("this worker could not start")
        sys.exit(EXIT_STUCK)
    relay = OutboxRelay(store, log, crash, RELAY)
    while True:
        try:
            loop.step()
        except MemberFenced:
            logging.exception("this worker's name went to another connection")
            sys.exit(EXIT_STUCK)
        with contextlib.suppress(LogUnavailable, StoreUnavailable):
            relay.step()
