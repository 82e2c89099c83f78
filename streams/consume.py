"""The consume loop: at-least-once delivery made effectively-once state (contract 2)."""

from __future__ import annotations

import gc
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any

from agent.profile import BucketKey, Counts, merge
from streams.clock import Clock, SystemClock
from streams.codec import Codec, DecodeError
from streams.continuity import Continuity
from streams.crash import CrashPoint, no_crash
from streams.dead_letters import dead_letter
from streams.events import Event, EventKey
from streams.log import Consumer, EventLog, LogError, LogUnavailable, Outgoing, Partition, Record
from streams.state.seen import seen
from streams.state.store import (
    Batch,
    DuplicateEvents,
    StaleOffsets,
    StateStore,
    StoreRefused,
    StoreUnavailable,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Effects:
    """What handling some events changes; written in one transaction. `failed` says of events why they can
    never be handled.
    """

    buckets: Mapping[BucketKey, Counts] = field(default_factory=dict)
    watermarks: Mapping[tuple[str, int], tuple[int, float]] = field(default_factory=dict)
    outbox: Sequence[Outgoing] = ()
    ledger: Sequence[Mapping[str, object]] = ()
    held_out: Sequence[Mapping[str, object]] = ()
    failed: Mapping[EventKey, str] = field(default_factory=dict)

    def __add__(self, other: Effects) -> Effects:
        return Effects(
            buckets=merge(self.buckets, other.buckets),
            watermarks={**self.watermarks, **_merge_watermarks(self.watermarks, other.watermarks)},
            outbox=[*self.outbox, *other.outbox],
            ledger=[*self.ledger, *other.ledger],
            held_out=[*self.held_out, *other.held_out],
            failed={**self.failed, **other.failed},
        )


Handler = Callable[[Sequence[Event]], Effects]


@dataclass(frozen=True)
class ConsumeSettings:
    """`transient` are the handler's exceptions that mean "again later": they pause the consumer and never
    make a dead letter.

    `check_topics_s`: how often the topics' identities are compared with those that were read.

    `look_first`: ask the store which ids are known before handling a batch, so that a handler that costs
    something is not called for them. Without it the batch is taken for new, and the store's refusal (nothing
    is written) makes the next try look.

    `collect_every_s`: how often the cycle collector runs at most, where `calm_collector` switched it off.
    """

    group: str
    topics: tuple[str, ...]
    max_records: int = 500
    poll_timeout_s: float = 0.2
    max_attempts: int = 3
    backoff_s: float = 0.5
    backoff_max_s: float = 30.0
    transient: tuple[type[Exception], ...] = ()
    look_first: bool = True
    check_topics_s: float = 30.0
    collect_every_s: float = 1.0


class ConsumeLoop:
    """One group member that turns records into state. Call `step` indefinitely.

    The order of a step, and what a crash after each point costs:

    1. poll; partitions that are newly assigned are first sought to the offset in the store (crash: nothing
       happened);
    2. decode; a record that cannot be decoded becomes a dead letter in this batch's outbox;
    3. drop events that are known (`look_first`) or came earlier in the batch; one from before the days that
       the store remembers becomes a dead letter, `expired`;
    4. handle (may call teachers; repeated after a crash, so handlers have no side effects but their result);
    5. one transaction in the store: offsets by compare-and-set, event ids, buckets, watermarks, ledger,
       outbox (crash before: the batch comes again; crash after: it does not);
    6. commit the offsets to the log, for lag tools only (crash: the lag shown is too large until the next
       commit).

    A batch that the database can never take (`StoreRefused`) is done again record by record; the record that
    it refuses becomes a dead letter. The outbox is emptied by `streams.state.outbox.OutboxRelay`. Transient
    failures in 1, 4 and 5 rewind to the stored offsets, pause, and retry with back-off. `StaleOffsets` in 5
    means the partition was lost: the batch is dropped and the stored offsets are read. A topic that was made
    anew, or that deleted what was not read yet, stops the loop (`streams.continuity.TopicChanged`).
    """

    def __init__(
        self, log: EventLog, store: StateStore, handler: Handler, settings: ConsumeSettings, **ports: Any
    ) -> None:
        self._store = store
        self._handler = handler
        self.settings = settings
        self._clock: Clock = ports.get("clock") or SystemClock()
        self._crash: CrashPoint = ports.get("crash") or no_crash
        self._codec: Codec = ports.get("codec") or Codec()
        self._log = log
        self._continuity = Continuity(log, store, settings.group, settings.check_topics_s)
        self._consumer: Consumer = log.consumer(settings.group, settings.topics)
        self._next: dict[Partition, int] = {}
        self._transient: tuple[type[Exception], ...] = (LogUnavailable, StoreUnavailable, *settings.transient)
        self._look = settings.look_first
        self._known_from = 0
        self._failures = 0
        self._retry_at: float | None = None
        self._collected_at = float("-inf")
        self.counts: Counter[str] = Counter()

    @property
    def waiting(self) -> bool:
        """Whether a transient failure is being waited out."""
        return self._retry_at is not None

    def step(self) -> int:
        """Process one batch; the number of records whose effect is now in the store (0: nothing to do, or
        waiting)."""
        try:
            records = self._poll()
            done = self._process(records) if records else 0
        except (StaleOffsets, DuplicateEvents) as exc:
            logger.warning("batch dropped, reading the stored offsets again: %s", exc)
            self.counts["fenced"] += 1
            self._look = True
            self._next.clear()
            return 0
        except self._transient as exc:
            self._back_off(exc)
            return 0
        if done:
            self._failures, self._look = 0, self.settings.look_first
        self._collect()
        return done

    def _collect(self) -> None:
        """Between batches, when hardly anything is alive, and seldom (`calm_collector`)."""
        if not gc.isenabled() and time.monotonic() - self._collected_at > self.settings.collect_every_s:
            gc.collect()
            self._collected_at = time.monotonic()

    def close(self) -> None:
        """Leave the group."""
        self._consumer.close()

    def _poll(self) -> list[Record]:
        if self._retry_at is not None:
            if self._clock.monotonic() < self._retry_at:
                self._consumer.poll(1, self.settings.poll_timeout_s)
                return []
            self._retry_at = None
            self._next.clear()
            self._consumer.resume()
        records = self._consumer.poll(self.settings.max_records, self.settings.poll_timeout_s)
        self._continuity.hear(self._consumer.topic_ids(), self._next)
        return self._follow_assignment(records)

    def _follow_assignment(self, records: list[Record]) -> list[Record]:
        """Forget lost partitions; seek gained ones to the store's offset, dropping what was polled from
        elsewhere.

        Clearing `_next` makes every partition a gained one: that is how the loop rewinds.
        """
        assigned = self._consumer.assignment()
        gained = assigned - self._next.keys()
        self._next = {partition: offset for partition, offset in self._next.items() if partition in assigned}
        first = {record.partition: record.offset for record in reversed(records)}
        if gained:
            start = self._stored_offsets(gained)
            self._next.update(start)
            moved = {partition for partition in gained if first.get(partition) != start[partition]}
            self._consumer.seek({partition: start[partition] for partition in moved})
            records = [record for record in records if record.partition not in moved]
            first = {partition: offset for partition, offset in first.items() if partition not in moved}
        if any(self._next.get(partition, offset) != offset for partition, offset in first.items()):
            self._continuity.check(self._next)
        else:
            self._continuity.check_now_and_then(self._next)
            if first.keys() <= self._next.keys():
                return records
        # A partition lost and regained inside one poll comes from the log's own commits, which may lag behind
        # the store.
        return [
            record
            for record in records
            if record.offset >= self._next.get(record.partition, record.offset + 1)
        ]

    def _stored_offsets(self, partitions: frozenset[Partition]) -> dict[Partition, int]:
        stored = self._store.offsets(self.settings.group)
        start = {partition: stored.get(partition, 0) for partition in partitions}
        self._known_from = self._store.known_from() or 0
        self._continuity.check(start)
        return start

    def _back_off(self, exc: Exception) -> None:
        wait = min(self.settings.backoff_max_s, self.settings.backoff_s * 2.0 ** min(self._failures, 16))
        self._failures += 1
        self.counts["retries"] += 1
        self._retry_at = self._clock.monotonic() + wait
        self._consumer.pause()
        logger.warning("%s: retry %d in %.1f s: %s", self.settings.group, self._failures, wait, exc)

    def _process(self, records: Sequence[Record]) -> int:
        self._crash("consume.after-poll")
        try:
            return self._process_together(records)
        except StoreRefused as exc:
            if len(records) == 1:
                return self._park(records[0], exc)
            logger.warning("a batch of %d records is done again one by one: %s", len(records), exc)
        return sum(self._process([record]) for record in records)

    def _process_together(self, records: Sequence[Record]) -> int:
        events, letters = self._decode(records)
        effects = self._handle(list(events.values()))
        if effects.failed:
            letters += self._failed(effects.failed, records)
            events = {key: event for key, event in events.items() if key not in effects.failed}
        counted = list(events.values())
        self._commit(records, counted, replace(effects, outbox=[*letters, *effects.outbox]))
        self.counts.update(records=len(records), events=len(counted), dead_letters=len(letters))
        return len(records)

    def _failed(self, failed: Mapping[EventKey, str], records: Sequence[Record]) -> Iterator[Outgoing]:
        """The dead letters of the events that the handler failed, each from the first record that has it."""
        first: dict[EventKey, Record] = {}
        for record in records:
            with suppress(DecodeError):
                first.setdefault(self._codec.decode(record).identity, record)
        for key, why in failed.items():
            if key not in first:
                raise LookupError(f"the handler failed event {key}, which is not in its batch")
            yield self._letter(first[key], "failed", why, self.settings.max_attempts)

    def _letter(self, record: Record, reason: str, message: str, attempts: int = 1) -> Outgoing:
        topic_id = self._continuity.topic_ids.get(record.partition.topic, "")
        return dead_letter(record, reason, message, attempts, topic_id)

    def _park(self, record: Record, why: StoreRefused) -> int:
        letter = self._letter(record, "refused", str(why))
        self._commit([record], [], Effects(outbox=[letter]))
        self.counts.update(records=1, dead_letters=1)
        return 1

    def _commit(self, records: Sequence[Record], events: Sequence[Event], effects: Effects) -> None:
        after = {record.partition: record.offset + 1 for record in records}
        batch = Batch(
            group=self.settings.group,
            expected=dict(self._next),
            offsets=after,
            events=[seen(event) for event in events],
            buckets=effects.buckets,
            watermarks=effects.watermarks,
            outbox=effects.outbox,
            ledger=effects.ledger,
            held_out=effects.held_out,
        )
        self._crash("consume.before-commit")
        self._store.commit(batch)
        self._next.update(after)
        self._crash("consume.after-commit")
        try:
            self._consumer.commit(after)
        except LogError as exc:
            # The truth is in the store: only the lag shown is wrong, until the next commit
            logger.info("offsets not committed to the log: %s", exc)

    def _decode(self, records: Sequence[Record]) -> tuple[dict[EventKey, Event], list[Outgoing]]:
        """The new events, and a dead letter for each record that cannot be read, or of which nobody knows
        whether it was counted."""
        events: dict[EventKey, Event] = {}
        letters: list[Outgoing] = []
        decode = self._codec.decode
        for record in records:
            try:
                event = decode(record)
            except DecodeError as exc:
                letters.append(self._letter(record, exc.reason, str(exc)))
                continue
            if self._known_from and event.occurred_at.toordinal() < self._known_from:
                letters.append(self._letter(record, "expired", self._expired(event)))
                continue
            events.setdefault((event.student, event.event_id), event)
        if self._look:
            for key in self._store.known(events.keys()):
                del events[key]
        self.counts["duplicates"] += len(records) - len(letters) - len(events)
        return events, letters

    def _handle(self, events: Sequence[Event]) -> Effects:
        if not events:
            return Effects()
        try:
            return self._handler(events)
        except self._transient:
            raise
        except Exception:
            logger.exception("handling %d events together failed; trying each by itself", len(events))
        total = Effects()
        for event in events:
            total += self._handle_alone(event)
        return total

    def _handle_alone(self, event: Event) -> Effects:
        """A bug in one event must not stop the rest: after `max_attempts` the event is a dead letter."""
        error = ""
        for _ in range(self.settings.max_attempts):
            try:
                return self._handler([event])
            except self._transient:
                raise
            except Exception as exc:
                error = f"{type(exc).__name__}: {exc}"
        return Effects(failed={event.identity: error})

    def _expired(self, event: Event) -> str:
        return (
            f"occurred_at {event.occurred_at.isoformat()} is before {date.fromordinal(self._known_from)}:"
            " `skillloop store compact` has forgotten what was counted until then"
        )


def calm_collector() -> None:
    """Have Python's cycle collector run only between batches, and never over what is loaded by now. For a
    process that consumes.

    A batch is thousands of objects that live until its commit and hold no cycles; with the default thresholds
    the collector walks them, and all modules, again and again: a quarter of a consumer's processor time
    (docs/scaling.md). The loop collects itself, at most once a second.
    """
    gc.collect()
    gc.freeze()
    gc.disable()


def _merge_watermarks(
    one: Mapping[tuple[str, int], tuple[int, float]], other: Mapping[tuple[str, int], tuple[int, float]]
) -> dict[tuple[str, int], tuple[int, float]]:
    start = (0, float("-inf"))
    return {
        key: (one.get(key, start)[0] + outputs, max(one.get(key, start)[1], latest))
        for key, (outputs, latest) in other.items()
    }
