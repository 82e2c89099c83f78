"""How keys and group members map to partitions in the logs that are ours (Kafka does it itself)."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence

from streams.log import Partition


def partition_of(key: bytes | None, partitions: int) -> int:
    """The partition of a key: stable across processes and versions; records without a key go to partition
    0."""
    return 0 if key is None else zlib.crc32(key) % partitions


def share(partitions: Iterable[Partition], members: Sequence[str], member: str) -> frozenset[Partition]:
    """The partitions of one group member: dealt round robin over the members in order of their names.

    >>> share([Partition("t", n) for n in range(3)], ["a", "b"], "b")
    frozenset({Partition(topic='t', number=1)})
    """
    ordered = sorted(members)
    if member not in ordered:
        return frozenset()
    place = ordered.index(member)
    return frozenset(
        partition for turn, partition in enumerate(sorted(partitions)) if turn % len(ordered) == place
    )


def in_turn(partitions: Iterable[Partition], turn: int) -> list[Partition]:
    """The partitions in the order in which poll number `turn` reads them: another one comes first each time,
    so none starves.

    >>> [partition.number for partition in in_turn([Partition("t", n) for n in range(3)], 4)]
    [1, 2, 0]
    """
    ordered = sorted(partitions)
    first = turn % len(ordered) if ordered else 0
    return ordered[first:] + ordered[:first]
