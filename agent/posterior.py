"""Reading the profile: windows, decay and a Beta-Binomial posterior per skill, from the integer table of
`agent.profile`.

For each skill, with w(b) = 2^(-(as_of - b) / half_life) for the buckets b inside the window:

    needed = sum of w(b) * needed_b,  missing = sum of w(b) * missing_b
    posterior = Beta(a0 + missing, b0 + needed - missing)

The prior (a0, b0) is `prior_strength` pseudo-answers at `prior_mean`, plus the predecessor's evidence in the
same window, scaled by `predecessor_weight` and capped at `predecessor_cap` pseudo-answers: a promoted student
soon speaks for itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from pydantic import Field

from agent.beta import quantile
from agent.profile import ALL, BucketKey, Counts
from agent.settings import Settings

_Buckets = dict[int, Counts]
_NO_BUCKETS: Mapping[int, Counts] = MappingProxyType({})


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

    `needed` and `missing` are discounted counts, `raw` the plain integers in the window; `mean`, `low` and
    `high` are the posterior's mean and its 5 % and 95 % quantiles; `share` is the part of the traffic that
    needs the skill; `priority` is mean x share: the part of all answers that this skill spoils.
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
        self._versions: dict[tuple[str, int], dict[str, _Buckets]] = {}
        self.add(table or {})

    def add(self, table: Mapping[BucketKey, Counts]) -> None:
        """Add the rows of another table, such as the fold of one batch."""
        for (student, version, skill, bucket), counts in table.items():
            buckets = self._versions.setdefault((student, version), {}).setdefault(skill, {})
            known = buckets.get(bucket)
            buckets[bucket] = counts if known is None else known.plus(counts)

    def versions(self) -> tuple[tuple[str, int], ...]:
        """The (student, version) pairs that have rows, sorted."""
        return tuple(sorted(self._versions))

    def skills(self, student: str, version: int) -> tuple[str, ...]:
        """The skills that this version met, sorted, without the pseudo-skill."""
        return tuple(sorted(skill for skill in self._versions.get((student, version), {}) if skill != ALL))

    def buckets(self, student: str, version: int, skill: str) -> Mapping[int, Counts]:
        """Counts of one skill by bucket; empty when there are none."""
        return MappingProxyType(self._versions.get((student, version), {}).get(skill, {}))

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
        own = {
            skill: _discount(rows, as_of_bucket, settings)
            for skill, rows in self._versions.get((student, version), {}).items()
        }
        before = {} if predecessor is None else self._versions.get((student, predecessor), {})
        total = own.get(ALL, _NOTHING)
        estimates = []
        for skill in {*own, *before} - {ALL}:
            prior = _discount(before.get(skill, _NO_BUCKETS), as_of_bucket, settings)
            seen = own.get(skill, _NOTHING)
            if seen.raw.needed or prior.raw.needed:
                estimates.append(_estimate(skill, seen, prior, total.needed, settings))
        return Profile(
            student=student,
            version=version,
            as_of_bucket=as_of_bucket,
            answers=total.raw.needed,
            incorrect=total.raw.missing,
            accuracy=1.0 - total.missing / total.needed if total.needed else None,
            skills=tuple(sorted(estimates, key=lambda e: (-e.priority, e.skill))),
        )


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


@dataclass(frozen=True, slots=True)
class _Evidence:
    needed: float
    missing: float
    raw: Counts


_NOTHING = _Evidence(0.0, 0.0, Counts())


def _discount(rows: Mapping[int, Counts], as_of: int, settings: ReadSettings) -> _Evidence:
    """Sum the buckets in the window, in bucket order so that the floats do not depend on arrival order."""
    oldest = None if settings.window_buckets is None else as_of - settings.window_buckets
    raw = Counts()
    needed = missing = 0.0
    for bucket in sorted(rows):
        if bucket > as_of or (oldest is not None and bucket <= oldest):
            continue
        half_life = settings.half_life_buckets
        weight = 1.0 if half_life is None else 2.0 ** ((bucket - as_of) / half_life)
        counts = rows[bucket]
        needed += weight * counts.needed
        missing += weight * counts.missing
        raw = raw.plus(counts)
    return _Evidence(needed, missing, raw)


def _estimate(
    skill: str, seen: _Evidence, prior: _Evidence, total: float, settings: ReadSettings
) -> SkillEstimate:
    scale = 0.0
    if prior.needed > 0.0:
        scale = min(settings.predecessor_weight, settings.predecessor_cap / prior.needed)
    a = settings.prior_strength * settings.prior_mean + scale * prior.missing + seen.missing
    b = (
        settings.prior_strength * (1.0 - settings.prior_mean)
        + scale * (prior.needed - prior.missing)
        + seen.needed
        - seen.missing
    )
    mean = a / (a + b)
    share = min(seen.needed / total, 1.0) if total else 0.0
    return SkillEstimate(
        skill=skill,
        needed=seen.needed,
        missing=seen.missing,
        raw=seen.raw,
        mean=mean,
        low=quantile(settings.tail, a, b),
        high=quantile(1.0 - settings.tail, a, b),
        share=share,
        priority=mean * share,
    )
