"""What a consumer group has not read at one moment: where a run that is to end (`--once`) ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from streams.errors import StreamsError
from streams.log import EventLog, Partition
from streams.state.store import StateStore

PATIENCE = 300
"""So many looks in a row without any progress mean that nobody reads what is left."""


class BacklogStuck(StreamsError):
    """Events of the backlog are not read by anybody; the message says which."""


@dataclass
class Backlog:
    """The records that topics held when `measure` was called, less those that the store has.

    An empty poll says nothing: a new member of a group on Kafka has no partitions at first. The offsets in
    the store do, whichever member of the group wrote them.
    """

    group: str
    ends: Mapping[Partition, int]
    begins: Mapping[Partition, int]
    _seen: tuple[int, int] = field(default=(-1, 0), repr=False)

    @classmethod
    def measure(cls, log: EventLog, group: str, topics: Sequence[str]) -> Backlog:
        """The backlog as of now. Raises `TopicMissing`, `LogUnavailable`."""
        ends = {partition: end for topic in topics for partition, end in log.end_offsets(topic).items()}
        begins = {partition: at for topic in topics for partition, at in log.begin_offsets(topic).items()}
        return cls(group, ends, begins)

    def left(self, store: StateStore) -> int:
        """Records of the backlog that are not in the store yet."""
        return sum(self._unread(store).values())

    def _unread(self, store: StateStore) -> dict[Partition, int]:
        stored = store.offsets(self.group)
        left = {
            partition: end - max(stored.get(partition, 0), self.begins.get(partition, 0))
            for partition, end in self.ends.items()
        }
        return {partition: count for partition, count in left.items() if count > 0}

    def done(self, store: StateStore, waiting: bool) -> bool:
        """Whether all of it is in the store; ask once after each poll.

        Raises `BacklogStuck` when nothing has moved for `PATIENCE` polls, in none of which the reader was
        `waiting` for a dependency.
        """
        unread = self._unread(store)
        left = sum(unread.values())
        same = self._seen[1] + 1 if left == self._seen[0] and not waiting else 0
        self._seen = (left, same)
        if same >= PATIENCE:
            where = ", ".join(f"{partition.topic}[{partition.number}]" for partition in sorted(unread))
            raise BacklogStuck(
                f"{left} records of {where} are read by nobody: another member of the group {self.group!r} "
                "may hold them and be stuck, or they are marks of transactions"
            )
        return not left
