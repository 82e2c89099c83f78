"""Drift of one version: all series of it scanned together (`agent.drift`), as its rows become known."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial

from agent.drift import ABSTENTIONS, DEFAULT_DRIFT, Alarm, DriftSettings, DriftWatch, TrafficScan
from agent.posterior import ProfileView
from agent.profile import ALL, RESERVED, BucketKey, Counts

Rows = Iterable[tuple[str, int, Counts]]
"""Skill or pseudo-skill, bucket, counts."""
Series = Mapping[str, Mapping[int, Counts]]
"""Counts by skill or pseudo-skill and bucket."""


class Scanner:
    """Watches one version: every skill's miss rate, the abstentions and the traffic.

    `catalog` is the number of skills that could be met. `before` gives what is known of earlier versions,
    from memory; their newest `horizon` opportunities of each skill, before the version's first bucket, begin
    the scan. Rows are put in as they become known, in any order; `advance` scans what is closed by then.
    A row that changes after it was scanned makes `advance` scan the version again from `history`.
    """

    def __init__(
        self, catalog: int, settings: DriftSettings = DEFAULT_DRIFT, before: Callable[[], Series] = dict
    ) -> None:
        self._settings, self._tests, self._before = settings, max(catalog, 1), before
        self._restart()

    def _restart(self) -> None:
        self._open: dict[int, dict[str, Counts]] = {}
        self._closed: int | None = None
        self._first: int | None = None
        self._late = False
        self._traffic = TrafficScan(self._settings, self._tests)
        self._watches = {name: DriftWatch(name, self._settings, 2, "abstention") for name in ABSTENTIONS}

    def _inherit(self, first: int) -> None:
        """Scan what earlier versions showed last, before the bucket `first`."""
        series, horizon = self._before(), self._settings.horizon
        answers = set(_newest(series.get(ALL, {}), first, horizon))
        watched: dict[int, dict[str, Counts]] = {}
        traffic: dict[int, dict[str, Counts]] = {bucket: {} for bucket in sorted(answers)}
        for skill, buckets in series.items():
            for bucket in _newest(buckets, first, horizon):
                watched.setdefault(bucket, {})[skill] = buckets[bucket]
            for bucket in answers & buckets.keys():
                traffic[bucket][skill] = buckets[bucket]
        for bucket in sorted(watched):
            self._watch(bucket, watched[bucket])
        for bucket, counts in traffic.items():
            self._traffic.add(bucket, counts)
        self._traffic.succeed()
        for watch in self._watches.values():
            watch.succeed()

    def put(self, rows: Rows) -> None:
        """Take rows as they are now, in place of what was known of them."""
        for skill, bucket, counts in rows:
            if self._precedes(bucket) or (self._closed is not None and bucket <= self._closed):
                self._late = True
            else:
                self._open.setdefault(bucket, {})[skill] = counts

    def put_before(self, rows: Rows) -> None:
        """Rows of earlier versions, as they are in `before` now."""
        self._late = self._late or any(self._precedes(bucket) for _, bucket, _ in rows)

    def _precedes(self, bucket: int) -> bool:
        return self._first is not None and bucket < self._first

    def advance(self, as_of_bucket: int, history: Callable[[], Rows] | None = None) -> None:
        """Scan the buckets that are closed as of `as_of_bucket`."""
        if self._late and history is not None:
            self._restart()
            self.put(history())
        if self._first is None and self._open:
            self._first = min(self._open)
            self._inherit(self._first)
        last = as_of_bucket - self._settings.lateness_buckets - 1
        for bucket in sorted(bucket for bucket in self._open if bucket <= last):
            counts = self._open.pop(bucket)
            self._watch(bucket, counts)
            self._traffic.add(bucket, counts)
        self._closed = last if self._closed is None else max(self._closed, last)

    def _watch(self, bucket: int, counts: Mapping[str, Counts]) -> None:
        for skill in counts:
            if not skill.startswith(RESERVED) and skill not in self._watches:
                self._watches[skill] = DriftWatch(skill, self._settings, self._tests)
        for skill in counts:
            if skill in self._watches:
                self._watches[skill].add(bucket, counts)

    @property
    def alarms(self) -> tuple[Alarm, ...]:
        """All alarms of the version so far, by bucket; those that were cleared too."""
        every = [
            *self._traffic.alarms,
            *(alarm for watch in self._watches.values() for alarm in watch.alarms),
        ]
        return tuple(sorted(every, key=lambda alarm: (alarm.bucket, alarm.kind, alarm.skill)))


def _newest(buckets: Mapping[int, Counts], end: int, opportunities: int) -> Iterable[int]:
    """The newest buckets before `end` that hold so many opportunities, newest first."""
    for bucket in sorted((bucket for bucket in buckets if bucket < end), reverse=True):
        if opportunities <= 0:
            return
        opportunities -= buckets[bucket].needed
        yield bucket


def scan_version(
    view: ProfileView,
    student: str,
    version: int,
    as_of_bucket: int,
    catalog: int,
    settings: DriftSettings = DEFAULT_DRIFT,
) -> tuple[Alarm, ...]:
    """Every alarm of a version, as of a bucket; its whole history, and that of earlier ones, is in `view`."""
    scanner = Scanner(catalog, settings, partial(earlier_series, view, student, version))
    for skill in view.names(student, version):
        scanner.put((skill, *row) for row in view.buckets(student, version, skill).items())
    scanner.advance(as_of_bucket)
    return scanner.alarms


def earlier_series(view: ProfileView, student: str, version: int) -> Series:
    """What all earlier versions showed together."""
    series: dict[str, dict[int, Counts]] = {}
    for owner, known in view.versions():
        for skill in view.names(owner, known) if owner == student and known < version else ():
            rows = series.setdefault(skill, {})
            for bucket, counts in view.buckets(owner, known, skill).items():
                rows[bucket] = rows.get(bucket, Counts()).plus(counts)
    return series


def rows_of(table: Mapping[BucketKey, Counts]) -> Rows:
    """The rows of one version's table, for `Scanner.put`."""
    return ((key.skill, key.bucket, counts) for key, counts in table.items())
