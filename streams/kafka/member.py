"""One member of a consumer group."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from kafka import KafkaConsumer, TopicPartition
from kafka import errors as kafka_errors
from kafka.structs import OffsetAndMetadata

from streams.kafka import seams
from streams.kafka.connect import errors, ms
from streams.log import LogError, Partition, Record
from streams.watchdog import Watchdog

if TYPE_CHECKING:
    from streams.kafka.log import KafkaLog

logger = logging.getLogger(__name__)
COMMIT_EVERY_S = 1.0
PROBE_EVERY_S = 5.0


class KafkaGroupMember:
    """One member of a consumer group: cooperative rebalance, static where the settings name an instance."""

    def __init__(self, log: KafkaLog, client: KafkaConsumer, group: str, topics: Sequence[str]) -> None:
        self._log = log
        self._group, self._topics = group, topics
        self._looked_at = time.monotonic()
        self._client = client
        self._watchdog = Watchdog(f"poll of group {group}", log.settings.watchdog_s)
        self._partitions: dict[TopicPartition, Partition] = {}
        self._paused = False
        self._to_commit: dict[TopicPartition, OffsetAndMetadata] = {}
        self._last: dict[TopicPartition, OffsetAndMetadata] = {}
        self._committed_at = 0.0

    def poll(self, max_records: int, timeout_s: float) -> list[Record]:
        if self._paused:
            self._client.pause(*self._client.assignment())
        with self._watchdog.guard(), errors(self._log.settings, "poll"):
            polled = self._client.poll(ms(timeout_s), max_records=max_records)
            self._send_commits()
        self._adopt()
        if self._paused:  # what came is of a partition that was assigned inside this poll
            for tp, batch in polled.items():
                self._client.seek(tp, batch[0].offset)
            return []
        return [
            record for tp, batch in polled.items() for record in seams.records_of(self._partition(tp), batch)
        ]

    def _adopt(self) -> None:
        """Ask for a new assignment where partitions have been left without an owner.

        A cooperative rebalance moves a partition in two steps: its owner gives it up, then joins again to
        have it assigned. An owner that dies in between and comes back under its name (KIP-345) gets its first
        assignment back without a rebalance, and nobody asks for the second step: the partition would stay
        alone indefinitely. Found by the crash test, seed 147.
        """
        if self._log.settings.instance is None or time.monotonic() - self._looked_at < PROBE_EVERY_S:
            return
        self._looked_at = time.monotonic()
        try:
            orphans = self._log.orphans(self._group, self._topics)
        except LogError as exc:
            logger.info("group %s could not be looked at: %s", self._group, exc)
            return
        if orphans:
            logger.warning(
                "nobody in group %s has %s: joining again", self._group, ", ".join(map(str, orphans))
            )
            seams.rejoin(self._client, self._topics)

    def _partition(self, tp: TopicPartition) -> Partition:
        return self._partitions.setdefault(tp, Partition(tp.topic, tp.partition))

    def assignment(self) -> frozenset[Partition]:
        return frozenset(self._partition(tp) for tp in self._client.assignment())

    def topic_ids(self) -> Mapping[str, str]:
        return seams.topic_ids(self._client, self._topics)

    def seek(self, offsets: Mapping[Partition, int]) -> None:
        assigned = self._client.assignment()
        for partition, offset in offsets.items():
            if partition not in assigned:
                raise LogError(f"cannot seek in {partition}: it is not assigned to this member")
            self._client.seek(TopicPartition(*partition), offset)
            self._last[TopicPartition(*partition)] = OffsetAndMetadata(offset, "", -1)

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        self._client.resume(*self._client.paused())

    def commit(self, offsets: Mapping[Partition, int]) -> None:
        for partition, offset in offsets.items():
            self._to_commit[TopicPartition(*partition)] = OffsetAndMetadata(offset, "", -1)
        self._last |= self._to_commit

    def _send_commits(self) -> None:
        """Commit what is new at most once a second, unacknowledged: it is for lag tools only.

        A static member repeats its last commit now and then. A member whose name went to another connection
        is told so by its heartbeat, which kafka-python only logs: it would poll nothing indefinitely. The
        answer to a commit comes out of the next poll.
        """
        waited = time.monotonic() - self._committed_at
        if waited >= PROBE_EVERY_S and self._log.settings.instance:
            assigned = self._client.assignment()
            self._to_commit = {tp: offset for tp, offset in self._last.items() if tp in assigned}
        if self._to_commit and waited >= COMMIT_EVERY_S:
            try:
                self._client.commit_async(self._to_commit)
            except kafka_errors.FencedInstanceIdError:
                raise
            except kafka_errors.KafkaError as exc:
                logger.info("offsets not committed: %s", exc)
            self._to_commit = {}
            self._committed_at = time.monotonic()

    def close(self) -> None:
        with suppress(kafka_errors.KafkaError):
            if self._to_commit:
                self._client.commit(self._to_commit, timeout_ms=2000)
        with suppress(kafka_errors.KafkaError):
            self._client.close(autocommit=False, timeout_ms=3000)
        self._watchdog.close()
