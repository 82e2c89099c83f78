"""The missing-skill profile as a fold: diagnosed answers -> integer counts per student, version, skill and
event-time bucket.

Sums of integers commute, so any order, any batching and any number of restarts give the same table:

1. one diagnosed answer is one `Observation`; duplicates are dropped before the fold, by event id;
2. `fold` adds observations up, `merge` adds tables up, `fold(a + b) == merge(fold(a), fold(b))`;
3. `canonical_bytes` of a rebuilt table equals that of the live one, byte for byte;
4. windows, decay and posteriors are applied when reading (`agent.posterior`), never when writing.

This module imports the standard library only.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

RESERVED = "*"
"""What the names of pseudo-skills begin with; no skill's name does."""
ALL = RESERVED
"""Pseudo-skill that every judged answer needs: `needed` counts answers, `missing` counts incorrect ones."""
UNDECIDED = "**undecided"
"""`needed` counts the answers watched, `missing` those that nobody could judge."""
UNLABELLED = "**unlabelled"
"""Judged answers whose question has no skill labels (both numbers; no row where there are none)."""
UNEXPLAINED = "**unexplained"
"""`needed` counts labelled answers judged wrong, `missing` those whose missing skill nobody could say."""


ALONE = 3 * RESERVED
"""What the names of `alone_row` begin with, and no other."""


def wrong_row(skill: str) -> str:
    """The pseudo-skill beside a skill: `needed` counts answers judged wrong that needed the skill, `missing`
    those of them that nobody could explain."""
    return RESERVED + skill


def alone_row(skill: str) -> str:
    """The pseudo-skill for the part of `wrong_row` whose questions need no other skill."""
    return ALONE + skill


class BucketKey(NamedTuple):
    """Key of one row: `bucket` is the index of an event-time interval, see `bucket_of`."""

    student: str
    version: int
    skill: str
    bucket: int


class Counts(NamedTuple):
    """How many answers needed the skill, and in how many of them the student failed to apply it.

    Examples
    --------
    >>> Counts(3, 1).plus(Counts(2, 2))
    Counts(needed=5, missing=3)
    """

    needed: int = 0
    missing: int = 0

    def plus(self, other: Counts) -> Counts:
        """Add two counts (`+` of tuples would concatenate)."""
        return Counts(self[0] + other[0], self[1] + other[1])


ProfileTable = dict[BucketKey, Counts]


@dataclass(frozen=True, slots=True)
class Observation:
    """One diagnosed answer.

    Parameters
    ----------
    student, version
        Who answered.
    bucket : int
        Event-time bucket of the answer.
    needed : tuple of str
        The skills that the question needs, each once.
    missing : tuple of str
        Those that the student failed to apply: a subset of `needed`; see `constrain`.
    incorrect : bool
        The answer is wrong though no missing skill is known (nobody could explain it, or all labels were
        discarded). Any missing skill implies it.
    judged : bool or None
        Whether anybody could say if the answer is right; an undecided one counts in `UNDECIDED` only. None:
        an older diagnosis that does not say; it counts as it always did, without the rows of coverage.

    Raises
    ------
    ValueError
        When `missing` is not a subset of `needed`, a name repeats, or a reserved name (`*...`) is used.
    """

    student: str
    version: int
    bucket: int
    needed: tuple[str, ...]
    missing: tuple[str, ...] = ()
    incorrect: bool = False
    judged: bool | None = None

    def __post_init__(self) -> None:
        needed, missing = set(self.needed), set(self.missing)
        if len(needed) < len(self.needed) or len(missing) < len(self.missing):
            raise ValueError(f"a skill repeats in needed={self.needed} or missing={self.missing}")
        if not missing <= needed:
            raise ValueError(
                f"missing skills {sorted(missing - needed)} are not needed by the question; "
                "call constrain() first"
            )
        if any(name.startswith(RESERVED) for name in needed):
            raise ValueError(f"skill names that begin with {RESERVED!r} are reserved, got {self.needed}")

    @property
    def wrong(self) -> bool:
        """Whether the answer counts as incorrect."""
        return self.incorrect or bool(self.missing)


def bucket_of(epoch_s: float, bucket_s: int) -> int:
    """Index of the event-time bucket: floor(epoch_s / bucket_s), both in seconds.

    Raises
    ------
    ValueError
        When `bucket_s` is not positive.

    Examples
    --------
    >>> bucket_of(119.9, 60), bucket_of(120.0, 60), bucket_of(-0.5, 60)
    (1, 2, -1)
    """
    if bucket_s <= 0:
        raise ValueError(f"bucket_s must be positive, got {bucket_s}")
    return int(epoch_s // bucket_s)


def constrain(
    raw_missing: Sequence[str], needed: Sequence[str], catalog: Container[str]
) -> tuple[tuple[str, ...], int]:
    """Snap a teacher's missing-skill labels to the skills the question needs.

    A label outside `needed` goes to the question's only skill when it has just one, else it is discarded; so
    is a label that the catalog does not know, whatever the question needs. Without this rule label noise
    gives absent skills misses without opportunities, and precision falls with more data.

    Returns
    -------
    missing : tuple of str
        A subset of `needed`, each name once, in the order of `needed`.
    discarded : int
        How many labels were dropped. A repeated label counts once.

    Examples
    --------
    >>> catalog = ("add", "gcd", "max")
    >>> constrain(["gcd"], ["add"], catalog), constrain(["gcd"], ["add", "max"], catalog)
    ((('add',), 0), ((), 1))
    >>> constrain(["gdc"], ["add"], catalog)
    ((), 1)
    """
    kept: set[str] = set()
    discarded = 0
    for label in dict.fromkeys(raw_missing):
        if label in needed:
            kept.add(label)
        elif label in catalog and len(needed) == 1:
            kept.add(needed[0])
        else:
            discarded += 1
    return tuple(skill for skill in dict.fromkeys(needed) if skill in kept), discarded


def fold(observations: Iterable[Observation]) -> ProfileTable:
    """Add up observations.

    Examples
    --------
    >>> table = fold([Observation("s", 1, 7, ("add", "gcd"), ("gcd",)), Observation("s", 1, 7, ("add",))])
    >>> [table[BucketKey("s", 1, skill, 7)] for skill in ("gcd", "add", ALL)]
    [Counts(needed=1, missing=1), Counts(needed=2, missing=0), Counts(needed=2, missing=1)]
    """
    return fold_counted((seen, 1) for seen in observations)


def fold_counted(counted: Iterable[tuple[Observation, int]]) -> ProfileTable:
    """`fold` where each observation comes with how often it was made."""
    sums: dict[BucketKey, list[int]] = {}
    for seen, count in counted:
        for skill, missed in rows_of(seen.needed, seen.missing, seen.wrong, seen.judged):
            _add(sums, BucketKey(seen.student, seen.version, skill, seen.bucket), count, missed)
    return {key: Counts(needed, missing) for key, (needed, missing) in sums.items()}


def rows_of(
    needed: Sequence[str], missing: Sequence[str], wrong: bool, judged: bool | None
) -> list[tuple[str, bool]]:
    """The rows that one diagnosed answer adds to: (skill or pseudo-skill, whether it counts in `missing`).

    Examples
    --------
    >>> rows_of(("gcd",), (), wrong=True, judged=None)
    [('*', True), ('gcd', False)]
    >>> rows_of(("gcd",), (), wrong=True, judged=True)[2:]
    [('**undecided', False), ('**unexplained', True), ('*gcd', True), ('***gcd', True)]
    """
    if judged is False:
        return [(UNDECIDED, True)]
    rows = [(ALL, wrong), *((skill, skill in missing) for skill in needed)]
    if judged:
        rows.append((UNDECIDED, False))
        if not needed:
            rows.append((UNLABELLED, True))
        elif wrong:
            alone = (alone_row(needed[0]),) if len(needed) == 1 else ()
            rows += [(name, not missing) for name in (UNEXPLAINED, *map(wrong_row, needed), *alone)]
    return rows


def _add(sums: dict[BucketKey, list[int]], key: BucketKey, count: int, missed: bool) -> None:
    row = sums.setdefault(key, [0, 0])
    row[0] += count
    row[1] += count if missed else 0


def merge(*tables: Mapping[BucketKey, Counts]) -> ProfileTable:
    """Add tables up into a new one.

    Examples
    --------
    >>> key = BucketKey("s", 1, "add", 7)
    >>> merge({key: Counts(2, 1)}, {key: Counts(1, 1)})[key]
    Counts(needed=3, missing=2)
    """
    total: ProfileTable = {}
    for table in tables:
        for key, counts in table.items():
            known = total.get(key)
            total[key] = counts if known is None else known.plus(counts)
    return total


def canonical_bytes(table: Mapping[BucketKey, Counts]) -> bytes:
    """Serialise a table so that equal tables give equal bytes: one JSON array a line, sorted by key, empty
    rows left out.

    Examples
    --------
    >>> table = {BucketKey("s", 1, "add", 7): Counts(2, 1), BucketKey("s", 1, "gcd", 7): Counts(0, 0)}
    >>> canonical_bytes(table)
    b'["s",1,"add",7,2,1]\\n'
    """
    rows = sorted((*key, *counts) for key, counts in table.items() if any(counts))
    return "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows).encode("ascii")
