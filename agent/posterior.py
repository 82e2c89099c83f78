"""Reading the profile: windows, decay and a Beta-Binomial posterior per skill, from the integer table of
`agent.profile`.

For each skill, with w(b) = 2^(-(as_of - b) / half_life) for the buckets b inside the window:

    needed = sum of w(b) * needed_b,  missing = sum of w(b) * missing_b
    posterior = Beta(a0 + missing, b0 + needed - missing)

Answers judged wrong that nobody could explain are opportunities with an unknown miss. They count as misses in
the proportion of the explained ones that needed the same skill, and both counts shrink to what that guess is
worth (`agent.imputation`; docs/decisions/0028).

The prior (a0, b0) is `prior_strength` pseudo-answers at `prior_mean`, plus the predecessor's evidence in the
same window, scaled by `predecessor_weight` and capped at `predecessor_cap` pseudo-answers: a promoted student
soon speaks for itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from pydantic import Field

from agent.beta import quantile
from agent.imputation import NOTHING, SkillEvidence, impute
from agent.profile import (
    ALL,
    RESERVED,
    UNDECIDED,
    UNEXPLAINED,
    UNLABELLED,
    BucketKey,
    Counts,
    wrong_row,
)
from agent.settings import Settings

_BLOCK = 64
"""Buckets that are summed together: a read costs a step per block, not per bucket."""


class ReadSettings(Settings):
    """How evidence is weighed. Times are in buckets; the defaults suit buckets of 60 s (a week's window, a
    day's half-life). None: no window, no decay."""

    window_buckets: int | None = Field(default=10_080, ge=1)
    half_life_buckets: float | None = Field(default=1_440.0, gt=0)
    prior_strength: float = Field(default=2.0, gt=0)
    prior_mean: float = Field(default=0.5, gt=0, lt=1)
    predecessor_weight: float = Field(default=0.1, ge=0)
    predecessor_cap: float = Field(default=5.0, ge=0)
    tail: float = Field(default=0.05, gt=0, lt=0.5)


DEFAULT_READ = ReadSettings()


@dataclass(frozen=True, slots=True)
class SkillEstimate:
    """What is believed of one skill of one student version.

    `needed` and `missing` are discounted counts, corrected for wrong answers that nobody could explain; `raw`
    the plain integers in the window; `mean`, `low` and `high` are the posterior's mean and its 5 % and 95 %
    quantiles; `share` is the part of the judged traffic that needs the skill; `priority` is mean x share: the
    part of all answers that this skill spoils. Coverage, plain counts: of the answers that needed the skill,
    `wrong` were judged wrong, `unexplained` of them without a missing skill.
    """

    skill: str
    needed: float
    missing: float
    raw: Counts
    mean: float
    low: float
    high: float
    share: float
    priority: float
    wrong: int = 0
    unexplained: int = 0

    @property
    def explained(self) -> float | None:
        """The part of its wrong answers that was explained; None when there were none, or older diagnoses."""
        return 1.0 - self.unexplained / self.wrong if self.wrong else None


@dataclass(frozen=True, slots=True)
class Coverage:
    """What the estimates rest on, in plain counts of the window: of the answers watched, how many were
    judged; of those, how many have skill labels; of the labelled ones, how many are wrong, and explained.

    Diagnoses of before coverage was recorded are not in it.
    """

    watched: int = 0
    judged: int = 0
    labelled: int = 0
    wrong: int = 0
    explained: int = 0


@dataclass(frozen=True, slots=True)
class Profile:
    """The profile of one student version as of a bucket; `skills` by falling priority, then by name.

    `answers` and `incorrect` are plain counts in the window, `accuracy` the discounted one (None: nothing was
    watched).
    """

    student: str
    version: int
    as_of_bucket: int
    answers: int
    incorrect: int
    accuracy: float | None
    skills: tuple[SkillEstimate, ...]
    coverage: Coverage = Coverage()

    def get(self, skill: str) -> SkillEstimate | None:
        """The estimate of one skill, None when neither this version nor its predecessor met it."""
        return next((estimate for estimate in self.skills if estimate.skill == skill), None)


class ProfileView:
    """A table indexed by student and version, so that reading one costs only its own rows.

    Examples
    --------
    >>> from agent.profile import Observation, fold
    >>> seen = [Observation("s", 1, 0, ("gcd",), ("gcd",))] * 9 + [Observation("s", 1, 0, ("add",))] * 11
    >>> profile = ProfileView(fold(seen)).read("s", 1, as_of_bucket=0)
    >>> [
    ...     (e.skill, e.raw.needed, round(e.low, 2), round(e.high, 2), round(e.share, 2))
    ...     for e in profile.skills
    ... ]
    [('gcd', 9, 0.74, 0.99, 0.45), ('add', 11, 0.0, 0.22, 0.55)]
    """

    def __init__(self, table: Mapping[BucketKey, Counts] | None = None) -> None:
        self._versions: dict[tuple[str, int], dict[str, _Series]] = {}
        self.add(table or {})

    def add(self, table: Mapping[BucketKey, Counts]) -> None:
        """Add the rows of another table, such as the fold of one batch."""
        for (student, version, skill, bucket), counts in table.items():
            series = self._series(student, version, skill)
            series.put(bucket, series.rows.get(bucket, Counts()).plus(counts))

    def put(self, table: Mapping[BucketKey, Counts]) -> None:
        """Take over rows as they are now, in place of what was known of them."""
        for (student, version, skill, bucket), counts in table.items():
            self._series(student, version, skill).put(bucket, counts)

    def forget(self, student: str, version: int, before: int) -> None:
        """Drop the blocks of buckets that end before the bucket `before`: no later read looks at them."""
        for series in self._versions.get((student, version), {}).values():
            series.forget(before)

    def _series(self, student: str, version: int, skill: str) -> _Series:
        return self._versions.setdefault((student, version), {}).setdefault(skill, _Series())

    def versions(self) -> tuple[tuple[str, int], ...]:
        """The (student, version) pairs that have rows, sorted."""
        return tuple(sorted(self._versions))

    def skills(self, student: str, version: int) -> tuple[str, ...]:
        """The skills that this version met, sorted, without the pseudo-skills."""
        return tuple(skill for skill in self.names(student, version) if not skill.startswith(RESERVED))

    def names(self, student: str, version: int) -> tuple[str, ...]:
        """The skills and pseudo-skills that this version has rows of, sorted."""
        return tuple(sorted(self._versions.get((student, version), {})))

    def buckets(self, student: str, version: int, skill: str) -> Mapping[int, Counts]:
        """Counts of one skill by bucket; empty when there are none."""
        return MappingProxyType(self._versions.get((student, version), {}).get(skill, _NO_SERIES).rows)

    def read(
        self,
        student: str,
        version: int,
        as_of_bucket: int,
        settings: ReadSettings = DEFAULT_READ,
        predecessor: int | None = None,
    ) -> Profile:
        """Estimate every skill of one version from the buckets up to and including `as_of_bucket`.

        Parameters
        ----------
        predecessor : int, optional
            The version that this one replaced; its evidence becomes a weak prior. None for the first student.
        """
        own = self._evidence(student, version, as_of_bucket, settings)
        before = {} if predecessor is None else self._evidence(student, predecessor, as_of_bucket, settings)
        total = own.get(ALL, NOTHING)
        estimates = []
        for skill in {*own, *before}:
            seen, prior = own.get(skill, NOTHING), before.get(skill, NOTHING)
            if not skill.startswith(RESERVED) and (seen.raw.needed or prior.raw.needed):
                wrong = own.get(wrong_row(skill), NOTHING).raw
                estimates.append(_estimate(skill, (seen, prior), wrong, total.needed, settings))
        return Profile(
            student=student,
            version=version,
            as_of_bucket=as_of_bucket,
            answers=total.raw.needed,
            incorrect=total.raw.missing,
            accuracy=1.0 - total.missing / total.needed if total.needed else None,
            skills=tuple(sorted(estimates, key=lambda e: (-e.priority, e.skill))),
            coverage=_coverage(own),
        )

    def _evidence(
        self, student: str, version: int, as_of: int, settings: ReadSettings
    ) -> dict[str, SkillEvidence]:
        series = self._versions.get((student, version), {})
        return impute({skill: rows.discounted(as_of, settings) for skill, rows in series.items()})


def read(
    table: Mapping[BucketKey, Counts],
    student: str,
    version: int,
    as_of_bucket: int,
    settings: ReadSettings = DEFAULT_READ,
    predecessor: int | None = None,
) -> Profile:
    """Read one version's profile from a plain table; scans the table once. For many reads keep a
    `ProfileView`."""
    wanted = {(student, version), (student, predecessor)}
    rows = {key: counts for key, counts in table.items() if (key.student, key.version) in wanted}
    return ProfileView(rows).read(student, version, as_of_bucket, settings, predecessor)


_Part = tuple[float, float, int, int]
"""Discounted needed and missing, and the plain ones."""


class _Series:
    """One skill's counts by bucket, with the sums of whole blocks kept: they do not depend on when one reads.

    All sums run in bucket order, so the floats depend on the counts only, not on their arrival.
    """

    def __init__(self) -> None:
        self.rows: dict[int, Counts] = {}
        self._blocks: dict[int, set[int]] = {}
        self._sums: dict[int, tuple[float | None, _Part]] = {}
        self._middle: tuple[tuple[int, int, float | None], _Part] | None = None

    def put(self, bucket: int, counts: Counts) -> None:
        block = bucket // _BLOCK
        self.rows[bucket] = counts
        self._blocks.setdefault(block, set()).add(bucket)
        self._sums.pop(block, None)
        if self._middle is not None and self._middle[0][0] <= block <= self._middle[0][1]:
            self._middle = None

    def forget(self, before: int) -> None:
        for block in [block for block in self._blocks if (block + 1) * _BLOCK <= before]:
            for bucket in self._blocks.pop(block):
                del self.rows[bucket]
            self._sums.pop(block, None)
            self._middle = None

    def discounted(self, as_of: int, settings: ReadSettings) -> SkillEvidence:
        """The sum of the buckets in the window: of its whole blocks, which stays for a block's time, and of
        what the window has of the blocks before and after them."""
        half_life, window = settings.half_life_buckets, settings.window_buckets
        oldest = min(self._blocks, default=0) * _BLOCK - 1 if window is None else as_of - window
        first, last = -(-(oldest + 1) // _BLOCK), (as_of + 1) // _BLOCK - 1
        ends = {first - 1, last + 1} & self._blocks.keys()
        parts = [(block, self._part(block, oldest, as_of, half_life)) for block in ends]
        if first <= last:
            parts.append((last, self._whole_blocks(first, last, half_life)))
        return SkillEvidence(*_discounted(sorted(parts), as_of, half_life))

    def _part(self, block: int, oldest: int, as_of: int, half_life: float | None) -> _Part:
        inside = [bucket for bucket in self._blocks[block] if oldest < bucket <= as_of]
        return self._sum(inside, min(_end(block), as_of), half_life)

    def _whole_blocks(self, first: int, last: int, half_life: float | None) -> _Part:
        span = (first, last, half_life)
        if self._middle is None or self._middle[0] != span:
            blocks = sorted(block for block in self._blocks if first <= block <= last)
            parts = [(block, self._whole(block, half_life)) for block in blocks]
            needed, missing, raw = _discounted(parts, _end(last), half_life)
            self._middle = (span, (needed, missing, *raw))
        return self._middle[1]

    def _whole(self, block: int, half_life: float | None) -> _Part:
        known = self._sums.get(block)
        if known is None or known[0] != half_life:
            known = self._sums[block] = (half_life, self._sum(self._blocks[block], _end(block), half_life))
        return known[1]

    def _sum(self, buckets: Iterable[int], last: int, half_life: float | None) -> _Part:
        needed, missing, raw_needed, raw_missing = 0.0, 0.0, 0, 0
        for bucket in sorted(buckets):
            weight = 1.0 if half_life is None else 2.0 ** ((bucket - last) / half_life)
            n, m = self.rows[bucket]
            needed += weight * n
            missing += weight * m
            raw_needed += n
            raw_missing += m
        return needed, missing, raw_needed, raw_missing


def _end(block: int) -> int:
    """The last bucket of a block."""
    return block * _BLOCK + _BLOCK - 1


def _discounted(
    parts: Iterable[tuple[int, _Part]], as_of: int, half_life: float | None
) -> tuple[float, float, Counts]:
    """The sum of blocks' parts, in order, each discounted from its end."""
    needed, missing, raw_needed, raw_missing = 0.0, 0.0, 0, 0
    for block, part in parts:
        age = min(_end(block), as_of) - as_of
        weight = 1.0 if half_life is None else 2.0 ** (age / half_life)
        needed += weight * part[0]
        missing += weight * part[1]
        raw_needed += part[2]
        raw_missing += part[3]
    return needed, missing, Counts(raw_needed, raw_missing)


_NO_SERIES = _Series()


def _coverage(own: Mapping[str, SkillEvidence]) -> Coverage:
    """Plain counts of the pseudo-skills' rows."""
    undecided, unlabelled, unexplained = (
        own.get(name, NOTHING).raw for name in (UNDECIDED, UNLABELLED, UNEXPLAINED)
    )
    judged = undecided.needed - undecided.missing
    return Coverage(
        watched=undecided.needed,
        judged=judged,
        labelled=judged - unlabelled.needed,
        wrong=unexplained.needed,
        explained=unexplained.needed - unexplained.missing,
    )


def _estimate(
    skill: str,
    evidence: tuple[SkillEvidence, SkillEvidence],
    wrong: Counts,
    total: float,
    settings: ReadSettings,
) -> SkillEstimate:
    """`evidence` is the version's own and its predecessor's."""
    seen, prior = evidence
    scale = 0.0
    if prior.needed > 0.0:
        scale = min(settings.predecessor_weight * prior.worth, settings.predecessor_cap / prior.needed)
    needed, missing = seen.worth * seen.needed, seen.worth * seen.missing
    a = settings.prior_strength * settings.prior_mean + scale * prior.missing + missing
    b = (
        settings.prior_strength * (1.0 - settings.prior_mean)
        + scale * (prior.needed - prior.missing)
        + needed
        - missing
    )
    mean = a / (a + b)
    share = min(seen.needed / total, 1.0) if total else 0.0
    return SkillEstimate(
        skill=skill,
        needed=needed,
        missing=missing,
        raw=seen.raw,
        mean=mean,
        low=quantile(settings.tail, a, b),
        high=quantile(1.0 - settings.tail, a, b),
        share=share,
        priority=mean * share,
        wrong=wrong.needed,
        unexplained=wrong.missing,
    )
