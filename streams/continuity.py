"""Is a topic still the one that was read, and is anything gone that was not read yet?

Offsets mean nothing in a topic that was deleted and made anew under its name, and a consumer that was away
for longer than the topic keeps records has lost some. Neither may pass in silence: the worker stops and says
what to do.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

from streams.log import EventLog, LogError, Partition
from streams.state.positions import Gap, TopicPositions
from streams.state.store import StaleOffsets, StateStore

logger = logging.getLogger(__name__)


class TopicChanged(LogError):
    """A topic is not the one that the state store has read, or has lost records before they were read."""


class Continuity:
    """Guards the offsets of one consumer group. A topic that the group meets for the first time is taken as
    it is."""

    def __init__(self, log: EventLog, store: StateStore, group: str, check_every_s: float = 30.0) -> None:
        self._every_s = check_every_s
        self._log = log
        self._store = store
        self._positions = TopicPositions(store)
        self._group = group
        self._checked_at = time.monotonic()
        self._heard_of: dict[str, str] = {}
        self.topic_ids: dict[str, str] = {}
        """Of the topics that were checked."""

    def check_now_and_then(self, offsets: Mapping[Partition, int]) -> None:
        """`check`, at most every `check_every_s`: a topic made anew may have grown past our offsets,
        unnoticed."""
        if offsets and time.monotonic() - self._checked_at > self._every_s:
            self.check(offsets)

    def hear(self, topic_ids: Mapping[str, str], offsets: Mapping[Partition, int]) -> None:
        """`check` where these identities, a consumer's own, are not those heard of before: at once, before
        anything of another topic of that name is counted."""
        if any(self._heard_of.get(topic, topic_id) != topic_id for topic, topic_id in topic_ids.items()):
            self.check(offsets)
        self._heard_of.update(topic_ids)

    def check(self, offsets: Mapping[Partition, int]) -> None:
        """Compare the next offsets to read with what the log has. Raises `TopicChanged`, and once
        `StaleOffsets` where somebody else has adopted a topic since the last time: these are of the one
        before."""
        known = self._positions.topic_ids(self._group)
        for topic in sorted({partition.topic for partition in offsets}):
            topic_id = self._log.topic_id(topic)
            if known.get(topic, topic_id) != topic_id:
                raise TopicChanged(
                    self._advice(topic, "was deleted and made anew, so the stored offsets mean nothing")
                )
            before = self.topic_ids.get(topic, topic_id)
            self.topic_ids[topic] = topic_id
            if before != topic_id:
                raise StaleOffsets(f"{self._group}: the topic {topic} was made anew, and adopted")
            own = {partition: offset for partition, offset in offsets.items() if partition.topic == topic}
            self._check_bounds(topic, own)
            if topic not in known:
                self._positions.know_topic(self._group, topic, topic_id)
        self._checked_at = time.monotonic()

    def _check_bounds(self, topic: str, offsets: Mapping[Partition, int]) -> None:
        ends, begins = self._log.end_offsets(topic), self._log.begin_offsets(topic)
        for partition, offset in sorted(offsets.items()):
            where = f"{topic}[{partition.number}]"
            if offset > ends.get(partition, 0):
                end = ends.get(partition, 0)
                raise TopicChanged(
                    self._advice(topic, f"ends at {end} in {where}, which was read up to {offset}")
                )
            if 0 < offset < begins.get(partition, 0):
                gone = begins[partition] - offset
                raise TopicChanged(
                    self._advice(topic, f"has deleted {gone} records of {where} before they were read")
                )

    def _advice(self, topic: str, what: str) -> str:
        return (
            f"{self._group}: the topic {topic} {what}. Restore it, or accept the loss: `skillloop topics"
            f" adopt {topic}` counts the gap and reads on from what is there"
        )

    def adopt(self, topic: str) -> list[Gap]:
        """Take the topic as it is now and read on from its beginning where our offsets are outside of it or
        of another topic; the gaps that this leaves, which stay in the store. Of a topic that is gone nobody
        knows what it held: each of its partitions has a gap, those that were not begun yet too."""
        topic_id, begins, ends = (
            self._log.topic_id(topic),
            self._log.begin_offsets(topic),
            self._log.end_offsets(topic),
        )
        anew = self._positions.topic_ids(self._group).get(topic, topic_id) != topic_id
        stored = self._store.offsets(self._group)
        gaps = [
            Gap(partition, stored.get(partition, 0), begin)
            for partition, begin in sorted(begins.items())
            if anew or not begin <= stored.get(partition, begin) <= ends[partition]
        ]
        self._positions.skip(self._group, topic, topic_id, gaps)
        return gaps
