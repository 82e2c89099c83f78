"""Wrong answers that nobody could explain: opportunities with an unknown miss, which is imputed from the
explained ones (docs/decisions/0028)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from agent.profile import RESERVED, Counts, alone_row, wrong_row

_GUESSED = 0.5
"""How many of its needed skills a wrong answer misses, before any was explained."""


@dataclass(frozen=True, slots=True)
class SkillEvidence:
    """Discounted counts of one skill, and plain ones. `worth` is the part of `needed` that the posterior may
    count."""

    needed: float
    missing: float
    raw: Counts
    worth: float = 1.0


NOTHING = SkillEvidence(0.0, 0.0, Counts())


def impute(seen: dict[str, SkillEvidence]) -> dict[str, SkillEvidence]:
    """Give the unexplained wrong answers of each skill their expected misses.

    A wrong answer to a question that needs one skill misses it, explained or not. Of the others that needed
    the skill, W were judged wrong, w of them explained, m of those missed it. An unexplained one missed it
    with probability c, about m / w (one pseudo-answer at the pooled proportion of all skills keeps it
    defined). Guessing costs evidence: by the delta method n shrinks by
    1 + W (W - w) c (1 - c) / ((w + 1) n p (1 - p)), which is 1 when all are explained. The two kinds are kept
    apart because a wrong label of a question's only skill is snapped to it, while with several skills it
    leaves the answer unexplained.
    """
    skills = [skill for skill in seen if not skill.startswith(RESERVED) and wrong_row(skill) in seen]
    if not any(seen[wrong_row(skill)].missing for skill in skills):
        return seen
    rows = {skill: _Wrong.of(skill, seen) for skill in skills}
    explained = sum(row.explained for row in rows.values())
    pooled = min(sum(row.missing for row in rows.values()) / explained, 1.0) if explained else _GUESSED
    return seen | {skill: _guess(seen[skill], row, pooled) for skill, row in rows.items()}


class _Wrong(NamedTuple):
    """Wrong answers that needed a skill: unexplained ones that needed no other; of those that needed others
    too, all, the explained ones, and those of them that missed the skill."""

    alone: float
    several: float
    explained: float
    missing: float

    @classmethod
    def of(cls, skill: str, seen: Mapping[str, SkillEvidence]) -> _Wrong:
        """From the rows of the skill."""
        wrong, alone = seen[wrong_row(skill)], seen.get(alone_row(skill), NOTHING)
        several, unexplained = wrong.needed - alone.needed, wrong.missing - alone.missing
        missing = seen[skill].missing - (alone.needed - alone.missing)
        return cls(alone.missing, several, max(several - unexplained, 0.0), max(missing, 0.0))


def _guess(seen: SkillEvidence, wrong: _Wrong, pooled: float) -> SkillEvidence:
    c = min((wrong.missing + pooled) / (wrong.explained + 1.0), 1.0)
    unexplained = max(wrong.several - wrong.explained, 0.0)
    missing = min(seen.missing + wrong.alone + unexplained * c, seen.needed)
    spread = missing * (1.0 - missing / seen.needed) if seen.needed else 0.0
    if not unexplained or spread <= 0.0:
        return replace(seen, missing=missing)
    extra = wrong.several * unexplained * c * (1.0 - c) / (wrong.explained + 1.0)
    return replace(seen, missing=missing, worth=1.0 / (1.0 + extra / spread))
