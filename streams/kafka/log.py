"""The production event log: Apache Kafka through kafka-python. Only this package imports it.

Bytes in, bytes out: a deserializer that raises makes kafka-python's next poll spin indefinitely, so decoding
is `streams.codec`'s. Nothing waits without a limit: every call has a timeout, and a watchdog ends the process
when a poll does not return.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Self

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka import errors as kafka_errors
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor

from streams.kafka import seams
from streams.kafka.connect import common_options, connect, errors, ms
from streams.kafka.member import KafkaGroupMember
from streams.kafka.settings import KafkaSettings
from streams.log import LogUnavailable, Outgoing, Partition, Record, TopicMissing
from streams.topics import MAX_LETTER_BYTES, TopicSpec
from streams.watchdog import Watchdog

READ_RECORDS = 2000
logger = logging.getLogger(__name__)


class KafkaLog:
    """One cluster. Raises `LogUnavailable` when no broker answers within `start_timeout_s`, `LogError` when
    it refuses the login."""

    def __init__(self, settings: KafkaSettings) -> None:
        self.settings = settings
        self._topics: dict[str, list[TopicPartition]] = {}
        self._ids: dict[str, str] = {}
        self._producer: Any = None
        # Clients for `read`, which takes one for as long as it is iterated.
        self._spare: list[KafkaConsumer] = []
        within = f"for {settings.start_timeout_s:.0f} s at most"
        logger.info("connecting to Kafka at %s, %s", settings.bootstrap_servers, within)
        self._admin = self._client(KafkaAdminClient)
        self._reader = self._client(KafkaConsumer, **_READING)
        self._watchdog = Watchdog("a look-up in Kafka", settings.watchdog_s)

    def _client(self, kind: Any, **options: Any) -> Any:
        return connect(self.settings, kind, **options)

    def _errors(self, what: str) -> AbstractContextManager[None]:
        return errors(self.settings, what)

    def append(self, records: Sequence[Outgoing]) -> None:
        for topic in {record.topic for record in records}:
            self._partitions(topic)
        with self._errors(f"append {len(records)} records"):
            try:
                self._send(records)
            except BaseException:
                self._drop_producer()  # with what it still holds: nobody will send it later
                raise

    def _send(self, records: Sequence[Outgoing]) -> None:
        if self._producer is None:
            self._producer = KafkaProducer(**common_options(self.settings), **self._writing())
        send = self._producer.send
        futures = [
            send(record.topic, record.value, key=record.key, headers=list(record.headers))
            for record in records
        ]
        self._producer.flush(timeout=self.settings.delivery_timeout_s + 1)
        for future in futures:
            future.get(timeout=0)  # all are done, or the flush would have raised

    def _writing(self) -> dict[str, object]:
        return {
            "acks": "all",
            "enable_idempotence": True,
            "linger_ms": 5,
            "batch_size": 262_144,
            "max_request_size": 4 * MAX_LETTER_BYTES,
            "max_block_ms": ms(self.settings.request_timeout_s),
            "delivery_timeout_ms": ms(self.settings.delivery_timeout_s),
            "allow_auto_create_topics": False,
            "metrics_enabled": False,
        }

    def _drop_producer(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            seams.drop(producer)

    def _partitions(self, topic: str) -> list[TopicPartition]:
        """Asked of the admin client: a consumer's `partitions_for_topic` waits without a limit when its
        answer gets lost."""
        if topic not in self._topics:
            with self._watchdog.guard(), self._errors(f"look up topic {topic!r}"):
                found = self._describe(topic)
                problem = kafka_errors.for_code(found["error_code"])
                if problem is kafka_errors.UnknownTopicOrPartitionError:
                    where = self.settings.bootstrap_servers
                    raise TopicMissing(
                        f"topic {topic!r} does not exist at {where}; `skillloop topics create` makes it"
                    )
                if found["error_code"]:
                    raise problem(topic)
            self._ids[topic] = str(found.get("topic_id", ""))
            self._topics[topic] = sorted(
                TopicPartition(topic, one["partition_index"]) for one in found["partitions"]
            )
        return self._topics[topic]

    def _describe(self, topic: str) -> Any:
        """A topic's metadata; waits for a connection, which the client's admin calls do not."""
        deadline = time.monotonic() + self.settings.request_timeout_s
        while True:
            try:
                return self._admin.describe_topics([topic])[0]
            except kafka_errors.NodeNotReadyError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def end_offsets(self, topic: str) -> dict[Partition, int]:
        return self._offsets(topic, "end", self._reader.end_offsets)

    def begin_offsets(self, topic: str) -> dict[Partition, int]:
        return self._offsets(topic, "beginning", self._reader.beginning_offsets)

    def _offsets(self, topic: str, which: str, ask: Callable[..., Any]) -> dict[Partition, int]:
        partitions = self._partitions(topic)
        with self._watchdog.guard(), self._errors(f"read the {which} of topic {topic!r}"):
            self._reader.assign(partitions)  # what it is assigned, it keeps the metadata of
            offsets = ask(partitions, timeout_ms=ms(self.settings.request_timeout_s))
        return {Partition(*partition): offset for partition, offset in sorted(offsets.items())}

    def topic_id(self, topic: str) -> str:
        self._topics.pop(topic, None)  # asked anew: what is remembered may be of a topic that is gone
        self._partitions(topic)
        return self._ids[topic]

    def read(self, topic: str, start: Mapping[Partition, int] | None = None) -> Iterator[Record]:
        ends = {TopicPartition(*partition): end for partition, end in self.end_offsets(topic).items()}
        reader = self._spare.pop() if self._spare else self._reading(self._client(KafkaConsumer, **_READING))
        try:
            with self._errors(f"read topic {topic!r}"):
                yield from self._read_to(reader, ends, start or {})
        finally:
            self._spare.append(reader)

    def _read_to(
        self, reader: KafkaConsumer, ends: Mapping[TopicPartition, int], start: Mapping[Partition, int]
    ) -> Iterator[Record]:
        reader.assign(list(ends))
        begin = reader.beginning_offsets(list(ends), timeout_ms=ms(self.settings.request_timeout_s))
        left = {tp: max(begin[tp], start.get(Partition(*tp), 0)) for tp in ends}
        left = {tp: position for tp, position in left.items() if position < ends[tp]}
        reader.assign(list(left))
        for tp, position in left.items():
            reader.seek(tp, position)
        deadline = time.monotonic() + self.settings.request_timeout_s
        while left:
            for tp, batch in reader.poll(500, max_records=READ_RECORDS).items():
                deadline = time.monotonic() + self.settings.request_timeout_s
                records = seams.records_of(Partition(*tp), batch)
                yield from (record for record in records if record.offset < ends[tp])
            left = {tp: ends[tp] for tp in left if reader.position(tp) < ends[tp]}
            if time.monotonic() > deadline:
                raise LogUnavailable(
                    f"Kafka at {self.settings.bootstrap_servers} sent nothing for"
                    f" {self.settings.request_timeout_s:.0f} s"
                )

    def orphans(self, group: str, topics: Sequence[str]) -> list[Partition]:
        """The partitions that no member of a stable group has; none while the group is rebalancing."""
        with self._watchdog.guard(), self._errors(f"describe group {group!r}"):
            found = self._admin.describe_groups([group])[group]
        if found["group_state"] != "Stable":
            return []
        assigned = [
            one for member in found["members"] for one in member["member_assignment"]["assigned_partitions"]
        ]
        owned = {Partition(one["topic"], number) for one in assigned for number in one["partitions"]}
        every = (Partition(*partition) for topic in topics for partition in self._partitions(topic))
        return sorted(partition for partition in every if partition not in owned)

    def _reading(self, client: KafkaConsumer) -> KafkaConsumer:
        return seams.read_by_batch(client) if self.settings.reader == "fast" else client

    def consumer(self, group: str, topics: Sequence[str]) -> KafkaGroupMember:
        partitions = [partition for topic in topics for partition in self._partitions(topic)]
        client = self._reading(self.group_client(group))
        with self._watchdog.guard(), self._errors("subscribe"):
            client.subscribe(list(topics))
            # A member that joins before it knows the topics' partitions can end up with none until the
            # metadata's age is reached: asking for offsets makes it learn them, within a limit.
            client.end_offsets(partitions, timeout_ms=ms(self.settings.start_timeout_s))
        return KafkaGroupMember(self, client, group, topics)

    def group_client(self, group: str) -> KafkaConsumer:
        """The client library's consumer with this log's options, not subscribed yet (benchmarks compare with
        it)."""
        settings = self.settings
        options = _READING | {
            "group_id": group,
            "group_instance_id": settings.instance,
            "partition_assignment_strategy": (CooperativeStickyAssignor,),
            "session_timeout_ms": ms(settings.session_timeout_s),
            "heartbeat_interval_ms": max(100, ms(min(3.0, settings.session_timeout_s / 4))),
            "max_poll_interval_ms": ms(settings.max_poll_interval_s),
        }
        return seams.keep_joins(seams.claim_what_is_held(self._client(KafkaConsumer, **options)))

    def create_topics(self, specs: Sequence[TopicSpec], replication: int = 1) -> list[str]:
        """Create the topics that do not exist yet; returns their names. Existing ones are left as they
        are."""
        with self._watchdog.guard(), self._errors("create topics"):
            existing = set(self._admin.list_topics())
            new = [spec for spec in specs if spec.name not in existing]
            wanted = {spec.name: _topic_options(spec, replication) for spec in new}
            if wanted:
                self._admin.create_topics(
                    wanted, timeout_ms=ms(self.settings.request_timeout_s), wait_for_metadata=True
                )
        return [spec.name for spec in new]

    def close(self) -> None:
        self._drop_producer()
        for client in (self._admin, self._reader, *self._spare):
            client.close()
        self._watchdog.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


_READING = {
    "metrics_enabled": False,
    "enable_auto_commit": False,
    "auto_offset_reset": "earliest",
    "isolation_level": "read_committed",
    "allow_auto_create_topics": False,
    "metadata_max_age_ms": 60_000,
    "max_partition_fetch_bytes": 4 * 1_048_576,  # several batches at once
    # One fetch is under way per broker, and one of empty partitions is answered after this time: so long do
    # the full ones wait too.
    "fetch_max_wait_ms": 50,
}


def _topic_options(spec: TopicSpec, replication: int) -> dict[str, object]:
    configs = {
        "cleanup.policy": "compact" if spec.compacted else "delete",
        "retention.ms": str(spec.retention_ms),
        "max.message.bytes": str(spec.max_bytes),
        "min.insync.replicas": str(max(1, replication - 1)),
    }
    return {"num_partitions": spec.partitions, "replication_factor": replication, "configs": configs}
