"""The outbox relay: carries what a transaction decided to publish into the event log, each row once
(docs/decisions/0011).

Several relays share one outbox: a row is claimed before it is sent. A claim that ran out means that its relay
died or the log failed under it, so the row may be in the log already: the end of its topic is read before it
is sent again.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from streams.clock import Clock, SystemClock
from streams.crash import CrashPoint, no_crash
from streams.dead_letters import OUTBOX_ID
from streams.log import EventLog, Outgoing, Partition, RecordRefused
from streams.state.claims import Claim, OutboxClaims, OutboxRow
from streams.state.store import StateStore

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RelaySettings:
    """A claimed row is sent within `send_within_s` or left; after `lease_s` another relay looks whether it
    was sent.

    The rest, `lease_s - send_within_s`, must be well above the time in which the log writes an append or
    gives it up (Kafka: `delivery_timeout_s`): what a broker still carries out after that could be there
    twice.
    """

    batch: int = 500
    lease_s: float = 30.0
    send_within_s: float = 5.0


class OutboxRelay:
    """Moves outbox rows to the log, oldest first; the order of rows is not kept around a crash or between
    relays.

    A row goes these steps, each of which may be the last one of this process:

    1. the end offsets of its topic are read; in one transaction the row is claimed and they are stored with
       it (crash: after the lease the row is looked for in the topic, not found, and sent);
    2. the row is appended with its id as a header (crash, or an error that leaves it open whether the log has
       it: after the lease it is looked for from the stored offsets on; found: deleted, not found: sent);
    3. the row is deleted.
    """

    def __init__(
        self,
        store: StateStore,
        log: EventLog,
        crash: CrashPoint = no_crash,
        settings: RelaySettings | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._rows = OutboxClaims(store)
        self._log = log
        self._crash = crash
        self._settings = settings or RelaySettings()
        self._clock = clock or SystemClock()
        # Every start of a relay is a new owner: it never trusts a claim it has not made.
        self._claim = Claim(str(uuid.uuid4()), self._settings.lease_s)

    def step(self) -> int:
        """Send everything pending that nobody else is sending; the number of rows that left the outbox.

        Raises `LogUnavailable`, `StoreUnavailable`: call again later.
        """
        total = 0
        while self._rows.has_expired_claims():
            doubtful = self._rows.reclaim(self._claim, self._settings.batch)
            if not doubtful:
                break  # another relay took them in between
            total += self._settle(doubtful)
        while topics := self._rows.unclaimed_topics(self._settings.batch):
            since = {topic: _dump(self._log.end_offsets(topic)) for topic in topics}
            began = self._clock.monotonic()
            rows = self._rows.claim(self._claim, since, self._settings.batch)
            if not rows:
                break
            if self._clock.monotonic() > began + self._settings.send_within_s:
                break  # too late to be sure that nobody else will take them: they wait for their lease
            total += self._send(rows)
        return total

    def _settle(self, rows: Sequence[OutboxRow]) -> int:
        """Send those of the doubtful rows that the log does not have."""
        found = self._in_log(rows)
        done = [row for row in rows if row.record_id in found]
        if done:
            logger.info("%d outbox rows of a relay that died had been sent", len(done))
        self._rows.sent([row.row_id for row in done])
        mine = self._rows.renew(
            [row.row_id for row in rows], self._claim
        )  # looking may have taken longer than the lease
        return len(done) + self._send([row for row in rows if row.row_id in mine])

    def _in_log(self, rows: Sequence[OutboxRow]) -> set[str]:
        """Which of these rows' ids stand in their topics, looked for from where the topics ended before the
        first attempt."""
        since: dict[str, dict[Partition, int]] = defaultdict(dict)
        for row in rows:
            for number, offset in json.loads(row.since):
                partition = Partition(row.record.topic, number)
                since[row.record.topic][partition] = min(
                    offset, since[row.record.topic].get(partition, offset)
                )
        found: set[str] = set()
        for topic, start in since.items():
            for record in self._log.read(topic, start):
                found.update(
                    value.decode(errors="replace") for name, value in record.headers if name == OUTBOX_ID
                )
        return found

    def _send(self, rows: Sequence[OutboxRow]) -> int:
        self._crash("outbox.before-append")
        if not rows:
            return 0
        try:
            self._log.append([_with_id(row) for row in rows])
        except RecordRefused as exc:
            return self._send_apart(rows, exc)
        self._crash("outbox.after-append")
        self._rows.sent([row.row_id for row in rows])
        return len(rows)

    def _send_apart(self, rows: Sequence[OutboxRow], exc: RecordRefused) -> int:
        """Send what the log takes of an append that it refused; move aside what it can never take."""
        if len(rows) == 1:
            logger.error("the log refuses a record of %s for good: %s", rows[0].record.topic, exc)
            self._rows.refuse(rows[0], str(exc))
            return 1
        found = self._in_log(rows)
        self._rows.sent([row.row_id for row in rows if row.record_id in found])
        return sum(1 if row.record_id in found else self._send([row]) for row in rows)


def _with_id(row: OutboxRow) -> Outgoing:
    record = row.record
    return Outgoing(
        record.topic, record.key, record.value, (*record.headers, (OUTBOX_ID, row.record_id.encode()))
    )


def _dump(ends: dict[Partition, int]) -> str:
    return json.dumps([[partition.number, end] for partition, end in sorted(ends.items())])
