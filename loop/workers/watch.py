"""The served version's profile and alarms, kept in memory: each look reads from the store what was written
since the last one, so its cost does not grow with history. The first look of a process reads everything."""

from __future__ import annotations

from functools import partial

from agent.drift import Alarm
from agent.posterior import Profile, ProfileView
from agent.profile import Counts
from agent.scanner import Scanner, earlier_series, rows_of
from loop.config import Config
from streams.state.store import StateStore


class ProfileWatch:
    """Reads one student's served version. `catalog` is the number of skills that could be met."""

    def __init__(self, config: Config, store: StateStore, catalog: int) -> None:
        self._config, self._store, self._catalog = config, store, catalog
        self._student = config.student.name
        self._route: tuple[int, int | None] | None = None
        self._batches: dict[int, int] = {}
        self._profile: Profile | None = None

    def look(self, version: int, predecessor: int | None, as_of: int) -> tuple[Profile, tuple[Alarm, ...]]:
        """The profile as of the bucket `as_of`, and every alarm of the version so far."""
        if self._route != (version, predecessor):
            self._route = (version, predecessor)
            self._view, self._batches, self._profile = ProfileView(), {}, None
            self._read_earlier(version, predecessor, as_of)
            before = partial(earlier_series, self._view, self._student, version)
            self._scanner = Scanner(self._catalog, self._config.drift, before)
        new = [self._read(known, as_of) for known in (version, predecessor) if known is not None]
        if self._profile is None or any(new) or as_of != self._profile.as_of_bucket:
            self._scanner.advance(as_of, self._history)
            self._profile = self._view.read(self._student, version, as_of, self._config.profile, predecessor)
        return self._profile, self._scanner.alarms

    def _read(self, version: int, as_of: int) -> bool:
        """Take over what is new of a version; whether there was anything."""
        last = self._batches.get(version, -1)
        window = self._config.profile.window_buckets
        oldest = None if window is None else as_of - window
        scanned = self._route is not None and version == self._route[0]
        since = None if scanned else oldest
        self._batches[version], rows = self._store.written_since(self._student, version, last, since)
        if scanned:
            self._scanner.put(rows_of(rows))
        elif self._route is not None and version < self._route[0]:
            self._scanner.put_before(rows_of(rows))
        self._view.put({key: c for key, c in rows.items() if oldest is None or key.bucket > oldest})
        if oldest is not None:
            self._view.forget(self._student, version, oldest)
        return bool(rows)

    def _read_earlier(self, version: int, predecessor: int | None, as_of: int) -> None:
        """Take over what versions before the predecessor showed in the window; nothing is added to it."""
        window = self._config.profile.window_buckets
        oldest = None if window is None else as_of - window
        for known in self._store.watermarks(self._student):
            if known < version and known != predecessor:
                self._view.put(self._store.buckets(self._student, known, oldest))

    def _history(self) -> list[tuple[str, int, Counts]]:
        version = self._route[0] if self._route else None
        return list(rows_of(self._store.buckets(self._student, version)))
