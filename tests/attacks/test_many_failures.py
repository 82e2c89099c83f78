"""Attacks: a batch in which every event fails."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from streams import dead_letters
from streams.codec import Codec, encode
from streams.consume import ConsumeLoop, ConsumeSettings, Effects
from streams.events import Event
from streams.log import Record
from streams.memory_log import MemoryLog
from streams.state.outbox import OutboxRelay
from streams.state.store import StateStore
from streams.testing.synthetic import output

TOPIC = "student-outputs"


class CountingCodec(Codec):
    """Counts what it decodes."""

    decoded = 0

    def decode(self, record: Record) -> Event:
        self.decoded += 1
        return super().decode(record)


def test_a_batch_of_failures_is_decoded_in_linear_time(tmp_path: Path) -> None:
    """256 failing events were decoded 32,896 times."""

    def fails(events: Sequence[Event]) -> Effects:
        return Effects(failed={event.identity: "no" for event in events})

    log, codec, store = MemoryLog(), CountingCodec(), StateStore(f"sqlite:///{tmp_path}/state.db")
    log.append([encode(output(n)) for n in range(256)])
    settings = ConsumeSettings("g", (TOPIC,), max_records=256)
    loop = ConsumeLoop(log, store, fails, settings, codec=codec)
    while loop.step():
        pass
    OutboxRelay(store, log).step()
    assert len(dead_letters.latest(log, TOPIC)) == 256
    assert codec.decoded <= 2 * 256
