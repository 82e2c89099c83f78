"""Every private name of kafka-python that we use, each with what is done where a version does not have it.

The client has no public call for these things. Only `streams.kafka.record_batch`, which is used through here,
touches private names too, so a new version of it costs speed at worst (decision 0024).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache, partial
from importlib import import_module
from typing import Any

from kafka import TopicPartition
from kafka import errors as kafka_errors

from streams.kafka.record_batch import ReadByBatch
from streams.log import Partition, Record

logger = logging.getLogger(__name__)
_MISSING = (ImportError, AttributeError, TypeError, ValueError, LookupError, kafka_errors.KafkaError)


@cache
def batch_reader() -> type[Any] | None:
    """The client's `PartitionRecords` with our reader of record batches before it, about four times as fast.

    None where the client's internals are not those that our reader was written for.
    """
    try:
        fetcher = import_module("kafka.consumer.fetcher").Fetcher
        return verified(fetcher.PartitionRecords, import_module("kafka.record.memory_records"))
    except _MISSING as exc:
        logger.warning(
            "kafka-python reads the records itself, which is slower: it has other internals (%s)", exc
        )
        return None


def verified(theirs: type[Any], memory: Any) -> type[Any]:
    """Our reader before `theirs`, after both have read the same sample batch. Raises one of `_MISSING`."""
    ours = type("PartitionRecords", (ReadByBatch, theirs), {"corrupt": kafka_errors.CorruptRecordError})
    partition = TopicPartition("sample", 0)
    builder = memory.MemoryRecordsBuilder(magic=2, compression_type=1, batch_size=4096)
    for number in range(3):
        builder.append(number, b"key", b"value %d" % number, [("name", b"header")])
    builder.close()
    sample = bytes(builder.buffer())
    readers = [kind(1, partition, memory.MemoryRecords(sample)) for kind in (ours, theirs)]
    mine, original = [records_of(Partition(*partition), reader.take(5)) for reader in readers]
    if len(mine) != 2 or mine != original or readers[0].next_fetch_offset != 3:
        raise ValueError(f"a sample batch was read as {mine}")
    return ours


def read_by_batch(client: Any) -> Any:
    """Have a consumer's `poll` hand out our records, where that is possible; the client."""
    reader = batch_reader()
    with suppress(AttributeError):
        if reader is not None and hasattr(client._fetcher, "PartitionRecords"):  # noqa: SLF001
            client._fetcher.PartitionRecords = reader  # noqa: SLF001
    return client


def records_of(partition: Partition, polled: Sequence[Any]) -> list[Record]:
    """What a poll brought of one partition as our records, whoever has read them."""
    if polled and not isinstance(polled[0], Record):
        return [
            Record(
                partition,
                r.offset,
                r.key,
                r.value or b"",
                tuple((name, value or b"") for name, value in r.headers),
            )
            for r in polled
        ]
    return list(polled)


@contextmanager
def thrown_away() -> Iterator[dict[str, Any]]:
    """Options for a client's constructor. Should it fail, its thread, which would keep trying, is ended."""
    networks: list[Any] = []
    try:
        kind = import_module("kafka.net.compat").KafkaNetClient
    except (ImportError, AttributeError):
        yield {}
        return

    def keep(**config: Any) -> Any:
        networks.append(kind(**config))
        return networks[-1]

    try:
        yield {"kafka_client": keep}
    except BaseException:
        for network in networks:
            network.close()
            with suppress(AttributeError):
                network._net.stop(timeout_ms=2000)  # noqa: SLF001
        raise


def drop(producer: Any) -> None:
    """Close a producer with what it still holds: nobody will send it later."""
    try:
        producer.close(timeout=0)
    except kafka_errors.KafkaError:  # close() flushes first, and leaves the sender running when that fails
        with suppress(AttributeError):
            producer._sender.force_close()  # noqa: SLF001
            producer._closed = True  # noqa: SLF001  or its finalizer would flush once more


def rejoin(client: Any, topics: Sequence[str]) -> None:
    """Have a consumer join its group again: kafka-python has no enforceRebalance (KIP-568)."""
    try:
        client._coordinator.request_rejoin()  # noqa: SLF001
    except AttributeError:
        client.unsubscribe()
        client.subscribe(list(topics))


def claim_what_is_held(client: Any) -> Any:
    """Have a consumer claim, when it joins its group, the partitions that it holds; the client.

    kafka-python 3.0.12 claims its last assignment, also after it was expelled and holds nothing. The leader
    then sees two owners of a partition, and may leave it with neither. Without this a partition that nobody
    has is seen by `KafkaGroupMember` some seconds later.
    """
    try:
        held, assignors = client._subscription.assigned_partitions, client._coordinator._assignors  # noqa: SLF001
        for assignor in assignors.values():
            assignor.metadata = partial(_metadata, assignor, type(assignor).metadata, held)
    except AttributeError as exc:
        logger.info("this kafka-python claims partitions in its own way: %s", exc)
    return client


def _metadata(assignor: Any, theirs: Any, held: Callable[[], set[Any]], topics: Any) -> Any:
    assignor.member_assignment = sorted(held())
    return theirs(assignor, topics)


class _Unread:
    """A join whose result nobody has taken yet: kafka-python drops one that is done."""

    is_done = False

    def __init__(self, task: Any) -> None:
        self.add_callback, self.add_errback = task.add_callback, task.add_errback
        self._task = task

    def __await__(self) -> Any:
        return self._task.__await__()


def keep_joins(client: Any) -> Any:
    """Have a consumer take the result of a join that ended between two polls; the client.

    kafka-python 3.0.12 (`ensure_active_group_async`) starts another join in its place, which begins a new
    rebalance. With members that are polled now and then, as idle workers are, joins always end between two
    polls: the group rebalanced for minutes and nobody got a record. Found by the campaign, seeds 4 and 7.
    """
    try:
        coordinator = client._coordinator  # noqa: SLF001
        theirs, task = type(coordinator), coordinator._join_task  # noqa: SLF001
    except AttributeError as exc:
        logger.info("this kafka-python joins in its own way: %s", exc)
        return client
    if task is None:
        kept = property(lambda self: vars(self).get("_join_task"), _keep)
        coordinator.__class__ = type(theirs.__name__, (theirs,), {"_join_task": kept})
    return client


def _keep(coordinator: Any, task: Any) -> None:
    vars(coordinator)["_join_task"] = None if task is None else _Unread(task)


def topic_ids(client: Any, topics: Sequence[str]) -> dict[str, str]:
    """The identities in a consumer's metadata (KIP-516), which it renews when a partition has moved."""
    try:
        known = {topic: client._cluster.topic_id(topic) for topic in topics}  # noqa: SLF001
    except AttributeError:
        return {}
    return {topic: str(topic_id) for topic, topic_id in known.items() if topic_id is not None}
