"""A watch that reads only what is new says what a fresh one says."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

from agent.posterior import ProfileView
from agent.profile import Observation, fold
from agent.scanner import scan_version
from loop.config import load
from loop.workers.watch import ProfileWatch
from streams.log import Partition
from streams.state.store import Batch, StateStore

CONFIG = load(None, overrides={"student": {"name": "s"}, "profile": {"window_buckets": 200}})
P0 = Partition("t", 0)


def write(store: StateStore, number: int, seen: list[Observation]) -> None:
    marks = {(o.student, o.version): (0, 0.0) for o in seen}
    for o in seen:
        count, latest = marks[o.student, o.version]
        marks[o.student, o.version] = (count + 1, max(latest, o.bucket * 60.0))
    store.commit(
        Batch(
            group="g", expected={P0: number}, offsets={P0: number + 1}, buckets=fold(seen), watermarks=marks
        )
    )


def stream(seed: int) -> list[list[Observation]]:
    """Batches of two versions, with answers that come up to 20 buckets late; `gcd` drifts in version 2."""
    rng, batches = random.Random(seed), []
    for start in range(0, 400, 10):
        batch = []
        for _ in range(120):
            bucket, skill = start + rng.randrange(10), rng.choice(["add", "gcd", "max"])
            bucket = max(0, bucket - (20 if rng.random() < 0.02 else 0))
            missed = rng.random() < (0.6 if skill == "gcd" and bucket > 250 else 0.2)
            told = (skill,) if missed and rng.random() < 0.8 else ()
            batch.append(Observation("s", rng.choice([1, 2, 2]), bucket, (skill,), told, missed, judged=True))
        batches.append(batch)
    return batches


def test_looking_often_says_what_one_look_says(tmp_path: Path) -> None:
    store = StateStore(f"sqlite:///{tmp_path / 's.db'}")
    often = ProfileWatch(CONFIG, store, catalog=3)
    for number, batch in enumerate(stream(1)):
        write(store, number, batch)
        as_of = max(o.bucket for o in batch)
        looked = often.look(2, 1, as_of)
        if number % 10 == 9:
            assert looked == ProfileWatch(CONFIG, store, catalog=3).look(2, 1, as_of)
    profile, alarms = looked
    view = ProfileView(store.buckets("s"))
    assert profile == view.read("s", 2, as_of, CONFIG.profile, predecessor=1)
    assert alarms == scan_version(view, "s", 2, as_of, 3, CONFIG.drift)
    assert [(a.skill, 245 < a.started < 262) for a in alarms if a.kind == "miss rate"] == [("gcd", True)]


def test_a_version_that_is_bad_from_its_first_answers_raises_an_alarm(tmp_path: Path) -> None:
    """A skill that drifted in the moment of a promotion raised none: a version was compared with itself."""
    store, rng = StateStore(f"sqlite:///{tmp_path / 's.db'}"), random.Random(3)
    often = ProfileWatch(CONFIG, store, catalog=3)
    for number in range(40):
        version = 1 if number < 20 else 2
        batch = []
        for _ in range(30):
            skill = rng.choice(["add", "gcd", "max"])
            miss = rng.random() < (0.6 if (skill, version) == ("gcd", 2) else 0.1)
            batch.append(Observation("s", version, number, (skill,), (skill,) if miss else (), miss, True))
        write(store, number, batch)
        alarms = often.look(version, version - 1 or None, number)[1]
    (alarm,) = [alarm for alarm in alarms if alarm.kind == "miss rate"]
    assert (alarm.skill, alarm.started, alarm.inherited) == ("gcd", 20, False) and alarm.bucket < 30
    straggler = Observation("s", 1, 19, ("gcd",), (), False, True)
    write(store, 40, [straggler])
    assert often.look(2, 1, 39) == ProfileWatch(CONFIG, store, catalog=3).look(2, 1, 39)
    assert [a.skill for a in often.look(2, 1, 39)[1] if a.kind == "miss rate"] == ["gcd"]
    later = [replace(answer, version=3, bucket=40) for answer in batch]
    write(store, 41, later)
    assert [a.inherited for a in often.look(3, 2, 40)[1] if a.kind == "miss rate"] == [True]


def test_a_look_reads_only_rows_that_are_new(tmp_path: Path) -> None:
    store = StateStore(f"sqlite:///{tmp_path / 's.db'}")
    first, second = stream(2)[:2]
    write(store, 0, first)
    batch, rows = store.written_since("s", 2, -1)
    assert rows == store.buckets("s", version=2)
    write(store, 1, second)
    newer, changed = store.written_since("s", 2, batch)
    assert newer > batch and 0 < len(changed) < len(store.buckets("s", 2))
    assert store.written_since("s", 2, newer) == (newer, {})
    assert set(changed) == {key for key in fold(second) if key.version == 2}
    assert store.written_since("s", 1, -1, since_bucket=10_000) == (2, {})  # nothing in it, and read
    assert store.answers("s") == 240
    assert store.buckets("s", 2, since_bucket=15) == {
        key: counts for key, counts in store.buckets("s", 2).items() if key.bucket >= 15
    }
