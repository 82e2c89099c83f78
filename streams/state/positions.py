"""What a consumer group knows of the topics that it reads: which they were, and what it will never read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import sqlalchemy as sa

from streams.log import Partition
from streams.state import tables
from streams.state.store import StateStore


class Gap(NamedTuple):
    """Records that will never be read: the group's next offset was `had` and is `reads_on` now."""

    partition: Partition
    had: int
    reads_on: int


class TopicPositions:
    """Identities of topics, and the gaps that a person accepted."""

    def __init__(self, store: StateStore) -> None:
        self._store = store

    def topic_ids(self, group: str) -> dict[str, str]:
        """The identities of the topics that the group has read."""
        table = tables.topic_ids.c
        query = sa.select(table.topic, table.topic_id).where(table.consumer_group == group)
        with self._store.transaction(read_only=True) as connection:
            return {topic: topic_id for topic, topic_id in connection.execute(query)}

    def know_topic(self, group: str, topic: str, topic_id: str) -> None:
        """Remember a topic's identity, unless one is known."""
        row = {"consumer_group": group, "topic": topic, "topic_id": topic_id}
        with self._store.transaction() as connection:
            self._store.insert_new(tables.topic_ids, [row], connection)

    def skip(self, group: str, topic: str, topic_id: str, gaps: Sequence[Gap]) -> None:
        """Take a topic's identity over, move the group's offsets over the gaps and record them, all at
        once."""
        ids, offsets = tables.topic_ids, tables.offsets
        with self._store.transaction() as connection:
            connection.execute(ids.delete().where(ids.c.consumer_group == group, ids.c.topic == topic))
            self._store.insert_new(
                ids, [{"consumer_group": group, "topic": topic, "topic_id": topic_id}], connection
            )
            for gap in gaps:
                place = {"topic": gap.partition.topic, "number": gap.partition.number}
                own = [
                    offsets.c.consumer_group == group,
                    *(offsets.c[name] == value for name, value in place.items()),
                ]
                connection.execute(offsets.update().where(*own).values(next_offset=gap.reads_on))
                row = {"consumer_group": group, **place, "had": gap.had, "reads_on": gap.reads_on}
                connection.execute(tables.gaps.insert(), row)

    def gaps(self, group: str) -> list[Gap]:
        """The gaps that were accepted, oldest first."""
        table = tables.gaps.c
        query = sa.select(tables.gaps).where(table.consumer_group == group).order_by(table.row_id)
        with self._store.transaction(read_only=True) as connection:
            rows = connection.execute(query).all()
        return [Gap(Partition(row.topic, row.number), row.had, row.reads_on) for row in rows]
