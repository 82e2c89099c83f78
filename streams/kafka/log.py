"""The production event log: Apache Kafka through kafka-python, of which this file is the only importer.

Bytes in, bytes out: a deserializer that raises makes kafka-python's next poll spin for ever, so decoding is
`streams.codec`'s. Nothing waits without a limit: every call has a timeout, and a watchdog ends the process
when a poll does not return.
"""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Self

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka import errors as kafka_errors
from kafka.consumer.fetcher import Fetcher
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.net.compat import KafkaNetClient
from kafka.structs import OffsetAndMetadata

from streams.kafka.record_batch import ReadByBatch
from streams.kafka.settings import KafkaSettings
from streams.log import LogError, LogUnavailable, MemberFenced, Outgoing, Partition, Record, TopicMissing
from streams.topics import MAX_LETTER_BYTES, TopicSpec
from streams.watchdog import Watchdog

logger = logging.getLogger(__name__)
_CLIENT_LOGGER = logging.getLogger("kafka.net.manager")
COMMIT_EVERY_S = 1.0
PROBE_EVERY_S = 5.0
READ_RECORDS = 2000
_TRANSIENT = (
    kafka_errors.RetriableError,
    kafka_errors.BrokerNotAvailableError,
    kafka_errors.CommitFailedError,
    kafka_errors.IllegalGenerationError,
    kafka_errors.RebalanceInProgressError,
    kafka_errors.UnknownMemberIdError,
    OSError,
)
_AUTH = (
    kafka_errors.SaslAuthenticationFailedError,
    kafka_errors.AuthorizationError,
    kafka_errors.UnsupportedSaslMechanismError,
)


class KafkaLog:
    """One cluster. Raises `LogUnavailable` when no broker answers within `start_timeout_s`, `LogError` when
    it refuses the login."""

    def __init__(self, settings: KafkaSettings) -> None:
        self.settings = settings
        self._topics: dict[str, list[TopicPartition]] = {}
        self._producer: Any = None
        self._spare: list[Any] = []  # clients for `read`, which takes one for as long as it is iterated
        self._admin = self._client(KafkaAdminClient)
        self._reader = self._client(KafkaConsumer, **_READING)
        self._watchdog = Watchdog("a look-up in Kafka", settings.watchdog_s)

    def _common(self) -> dict[str, Any]:
        settings = self.settings
        return {
            "bootstrap_servers": settings.addresses,
            "client_id": f"skillloop-{settings.instance or 'worker'}",
            "request_timeout_ms": _ms(settings.request_timeout_s),
            "reconnect_backoff_max_ms": 1000,
            "bootstrap_timeout_ms": _ms(settings.start_timeout_s),
            **settings.security(),
        }

    def _client(self, kind: Any, **options: Any) -> Any:
        sasl = self.settings.security_protocol.startswith("SASL")
        nets: list[Any] = []

        def keep(**config: Any) -> Any:
            nets.append(KafkaNetClient(**config))
            return nets[-1]

        with self.errors("connect"), _Refusals(sasl) as refusals:
            try:
                return kind(**self._common(), **options, kafka_client=keep)
            except kafka_errors.KafkaError as exc:
                for net in nets:  # a client whose constructor fails leaves its thread, which goes on trying, and its sockets
                    net.close()
                    net._net.stop(timeout_ms=2000)  # noqa: SLF001
                if refusals.last and isinstance(exc, kafka_errors.KafkaTimeoutError):
                    raise refusals.last from exc  # it tried again and again, whatever the reason was
                raise

    @contextmanager
    def errors(self, what: str) -> Iterator[None]:
        """Turn the client's errors into the port's, with the address and the setting to look at."""
        servers = self.settings.bootstrap_servers
        try:
            yield
        except _AUTH as exc:
            raise LogError(
                f"Kafka at {servers} refused to {what}: {_text(exc)}; check log.kafka.sasl_username,"
                " log.kafka.sasl_password and ACLs"
            ) from exc
        except ssl.SSLError as exc:
            raise LogError(
                f"no encrypted connection to Kafka at {servers}: {exc}; check log.kafka.security_protocol and"
                " log.kafka.ssl_cafile"
            ) from exc
        except kafka_errors.FencedInstanceIdError as exc:
            name = self.settings.instance
            raise MemberFenced(
                f"another connection has the instance name {name!r}: give each worker its own, and start this"
                " one again"
            ) from exc
        except kafka_errors.UnknownTopicOrPartitionError as exc:
            raise TopicMissing(
                f"a topic is missing at {servers} ({_text(exc)}); `skillloop topics create` makes them all"
            ) from exc
        except _TRANSIENT as exc:
            raise LogUnavailable(
                f"cannot {what}: no answer from Kafka at {servers} ({_text(exc)}); check"
                " log.kafka.bootstrap_servers"
            ) from exc
        except kafka_errors.KafkaError as exc:
            raise LogError(f"Kafka at {servers} failed to {what}: {_text(exc)}") from exc

    def append(self, records: Sequence[Outgoing]) -> None:
        for topic in {record.topic for record in records}:
            self._partitions(topic)
        with self.errors(f"append {len(records)} records"):
            try:
                self._send(records)
            except BaseException:
                self._drop_producer()  # with what it still holds: nobody will send it later
                raise

    def _send(self, records: Sequence[Outgoing]) -> None:
        if self._producer is None:
            self._producer = KafkaProducer(**self._common(), **self._writing())
        send = self._producer.send
        futures = [
            send(record.topic, record.value, key=record.key, headers=list(record.headers))
            for record in records
        ]
        self._producer.flush(timeout=self.settings.delivery_timeout_s + 1)
        for future in futures:
            future.get(timeout=0)  # all are done, or the flush would have raised

    def _writing(self) -> dict[str, Any]:
        return {
            "acks": "all",
            "enable_idempotence": True,
            "linger_ms": 5,
            "batch_size": 262_144,
            "max_request_size": 4 * MAX_LETTER_BYTES,
            "max_block_ms": _ms(self.settings.request_timeout_s),
            "delivery_timeout_ms": _ms(self.settings.delivery_timeout_s),
            "allow_auto_create_topics": False,
            "metrics_enabled": False,
        }

    def _drop_producer(self) -> None:
        producer, self._producer = self._producer, None
        if producer is None:
            return
        try:
            producer.close(timeout=0)
        except (
            kafka_errors.KafkaError
        ):  # close() flushes first, and leaves the sender running when that fails
            producer._sender.force_close()  # noqa: SLF001
            producer._closed = True  # noqa: SLF001

    def _partitions(self, topic: str) -> list[TopicPartition]:
        """Asked of the admin client: a consumer's `partitions_for_topic` waits without a limit when its
        answer gets lost."""
        if topic not in self._topics:
            with self._watchdog.guard(), self.errors(f"look up topic {topic!r}"):
                found = self._describe(topic)
                problem = kafka_errors.for_code(found["error_code"])
                if problem is kafka_errors.UnknownTopicOrPartitionError:
                    where = self.settings.bootstrap_servers
                    raise TopicMissing(
                        f"topic {topic!r} does not exist at {where}; `skillloop topics create` makes it"
                    )
                if found["error_code"]:
                    raise problem(topic)
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
        partitions = self._partitions(topic)
        with self._watchdog.guard(), self.errors(f"read the end of topic {topic!r}"):
            self._reader.assign(partitions)  # what it is assigned, it keeps the metadata of
            ends = self._reader.end_offsets(partitions, timeout_ms=_ms(self.settings.request_timeout_s))
        return {Partition(*partition): offset for partition, offset in sorted(ends.items())}

    def read(self, topic: str, start: Mapping[Partition, int] | None = None) -> Iterator[Record]:
        ends = {TopicPartition(*partition): end for partition, end in self.end_offsets(topic).items()}
        reader = self._spare.pop() if self._spare else _by_batch(self._client(KafkaConsumer, **_READING))
        try:
            with self.errors(f"read topic {topic!r}"):
                yield from self._read_to(reader, ends, start or {})
        finally:
            self._spare.append(reader)

    def _read_to(
        self, reader: Any, ends: Mapping[Any, int], start: Mapping[Partition, int]
    ) -> Iterator[Record]:
        reader.assign(list(ends))
        begin = reader.beginning_offsets(list(ends), timeout_ms=_ms(self.settings.request_timeout_s))
        left = {tp: max(begin[tp], start.get(Partition(*tp), 0)) for tp in ends}
        left = {tp: position for tp, position in left.items() if position < ends[tp]}
        reader.assign(list(left))
        for tp, position in left.items():
            reader.seek(tp, position)
        deadline = time.monotonic() + self.settings.request_timeout_s
        while left:
            for tp, found in reader.poll(500, max_records=READ_RECORDS).items():
                deadline = time.monotonic() + self.settings.request_timeout_s
                yield from (one for one in found if one.offset < ends[tp])
            left = {tp: ends[tp] for tp in left if reader.position(tp) < ends[tp]}
            if time.monotonic() > deadline:
                raise LogUnavailable(
                    f"Kafka at {self.settings.bootstrap_servers} sent nothing for"
                    f" {self.settings.request_timeout_s:.0f} s"
                )

    def orphans(self, group: str, topics: Sequence[str]) -> list[Partition]:
        """The partitions that no member of a stable group has; none while the group is rebalancing."""
        with self._watchdog.guard(), self.errors(f"describe group {group!r}"):
            found = self._admin.describe_groups([group])[group]
        if found["group_state"] != "Stable":
            return []
        assigned = [
            one for member in found["members"] for one in member["member_assignment"]["assigned_partitions"]
        ]
        owned = {Partition(one["topic"], number) for one in assigned for number in one["partitions"]}
        every = (Partition(*partition) for topic in topics for partition in self._partitions(topic))
        return sorted(partition for partition in every if partition not in owned)

    def consumer(self, group: str, topics: Sequence[str]) -> KafkaGroupMember:
        partitions = [partition for topic in topics for partition in self._partitions(topic)]
        client = _by_batch(self.group_client(group))
        with self._watchdog.guard(), self.errors("subscribe"):
            client.subscribe(list(topics))
            # A member that joins before it knows the topics' partitions can end up with none until the
            # metadata's age is reached: asking for offsets makes it learn them, within a limit.
            client.end_offsets(partitions, timeout_ms=_ms(self.settings.start_timeout_s))
        return KafkaGroupMember(self, client, group, topics)

    def group_client(self, group: str) -> Any:
        """The client library's consumer with this log's options, not subscribed yet (benchmarks compare with
        it)."""
        settings = self.settings
        options = _READING | {
            "group_id": group,
            "group_instance_id": settings.instance,
            "partition_assignment_strategy": (CooperativeStickyAssignor,),
            "session_timeout_ms": _ms(settings.session_timeout_s),
            "heartbeat_interval_ms": max(100, _ms(min(3.0, settings.session_timeout_s / 4))),
            "max_poll_interval_ms": _ms(settings.max_poll_interval_s),
        }
        return self._client(KafkaConsumer, **options)

    def create_topics(self, specs: Sequence[TopicSpec], replication: int = 1) -> list[str]:
        """Create the topics that do not exist yet; returns their names. Existing ones are left as they
        are."""
        with self._watchdog.guard(), self.errors("create topics"):
            existing = set(self._admin.list_topics())
            new = [spec for spec in specs if spec.name not in existing]
            wanted = {spec.name: _topic_options(spec, replication) for spec in new}
            if wanted:
                self._admin.create_topics(
                    wanted, timeout_ms=_ms(self.settings.request_timeout_s), wait_for_metadata=True
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


class _Refusals(logging.Handler):
    """Keeps the last failure of login or encryption that the client met while connecting: it only logs it,
    and then reports a timeout.

    After a wrong password the broker closes the connection, and the client mostly sees that instead of the
    broker's answer.
    """

    def __init__(self, sasl: bool) -> None:
        super().__init__(logging.WARNING)
        self._sasl = sasl
        self.last: BaseException | None = None

    def emit(self, record: logging.LogRecord) -> None:
        for argument in record.args if isinstance(record.args, tuple) else ():
            if isinstance(argument, _AUTH):
                self.last = argument
            elif isinstance(argument, kafka_errors.KafkaConnectionError) and "[SSL: " in str(argument):
                self.last = ssl.SSLError(str(argument))
            elif (
                self._sasl
                and isinstance(argument, kafka_errors.KafkaConnectionError)
                and "socket disconnected" in str(argument)
            ):
                self.last = kafka_errors.SaslAuthenticationFailedError(
                    "the broker closed the connection during the login"
                )

    def __enter__(self) -> Self:
        _CLIENT_LOGGER.addHandler(self)
        return self

    def __exit__(self, *exc: object) -> None:
        _CLIENT_LOGGER.removeHandler(self)


class KafkaGroupMember:
    """One member of a consumer group: cooperative rebalance, static where the settings name an instance."""

    def __init__(self, log: KafkaLog, client: Any, group: str, topics: Sequence[str]) -> None:
        self._log = log
        self._group, self._topics = group, topics
        self._looked_at = time.monotonic()
        self._client = client
        self._watchdog = Watchdog(f"poll of group {group}", log.settings.watchdog_s)
        self._partitions: dict[Any, Partition] = {}
        self._paused = False
        self._to_commit: dict[Any, Any] = {}
        self._last: dict[Any, Any] = {}
        self._committed_at = 0.0

    def poll(self, max_records: int, timeout_s: float) -> list[Record]:
        if self._paused:
            self._client.pause(*self._client.assignment())
        with self._watchdog.guard(), self._log.errors("poll"):
            polled = self._client.poll(_ms(timeout_s), max_records=max_records)
            self._send_commits()
        self._adopt()
        if self._paused:  # what came is of a partition that was assigned inside this poll
            for tp, found in polled.items():
                self._client.seek(tp, found[0].offset)
            return []
        return [record for found in polled.values() for record in found]

    def _adopt(self) -> None:
        """Ask for a new assignment where partitions have been left without an owner.

        A cooperative rebalance moves a partition in two steps: its owner gives it up, then joins again to
        have it assigned. An owner that dies in between and comes back under its name (KIP-345) gets its first
        assignment back without a rebalance, and nobody asks for the second step: the partition would stay
        alone for ever. Found by the crash test, seed 147.
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
            self._client._coordinator.request_rejoin()  # noqa: SLF001

    def _partition(self, tp: Any) -> Partition:
        return self._partitions.setdefault(tp, Partition(tp.topic, tp.partition))

    def assignment(self) -> frozenset[Partition]:
        return frozenset(self._partition(tp) for tp in self._client.assignment())

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
        is told so by its heartbeat, which kafka-python only logs: it would poll nothing for ever. The answer
        to a commit comes out of the next poll.
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


class _PartitionRecords(ReadByBatch, Fetcher.PartitionRecords):  # type: ignore[misc]
    corrupt = kafka_errors.CorruptRecordError


def _by_batch(client: Any) -> Any:
    """Have a client's `poll` hand out our records."""
    client._fetcher.PartitionRecords = _PartitionRecords  # noqa: SLF001
    return client


def _topic_options(spec: TopicSpec, replication: int) -> dict[str, Any]:
    configs = {
        "cleanup.policy": "compact" if spec.compacted else "delete",
        "retention.ms": str(spec.retention_ms),
        "max.message.bytes": str(spec.max_bytes),
        "min.insync.replicas": str(max(1, replication - 1)),
    }
    return {"num_partitions": spec.partitions, "replication_factor": replication, "configs": configs}


def _ms(seconds: float) -> int:
    return int(seconds * 1000)


def _text(exc: BaseException) -> str:
    return f"{type(exc).__name__}: {exc}".removesuffix(": ")
