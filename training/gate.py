"""The gate: may the challenger replace the champion? Closed by default.

It opens when both of these hold, on one fixed held-out set, item by item:
1. the target skills gain: exact McNemar test on their pooled items, so two equal students pass in at most
   `alpha` of rounds;
2. no skill, and no other evaluation set, loses: each one by itself must be shown not worse by `margin` (Tango
   1998 at `regression_alpha`), so a skill that lost the margin or more passes in about `regression_alpha` of
   rounds.
Averages are never tested alone: a neighbour can lose 35 points while the average moves by one.
Sizes of evaluation sets that make good challengers pass: docs/decisions/0007-gate-power.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from agent.settings import Settings
from training.errors import ItemSetMismatch
from training.evaluate import SKILL_STRATUM, Evaluation, require_same_items
from training.paired import mcnemar_p, tango_lower_bound, tango_p

Kind = Literal["targets", "target", "skill", "stratum", "reported"]
SMALL_SKILLS = "(small skills)"


class GateSettings(Settings):
    """How strict the gate is.

    `min_items` per tested skill and stratum. `small_skills`: "refuse" closes the gate when a skill has fewer;
    "pool" tests all such skills as one group, for catalogs too long to measure skill by skill (targets are
    never pooled away). `reported_only` names strata, or prefixes before a colon, that are shown but not
    tested.
    """

    margin: float = Field(default=0.10, gt=0, lt=1)
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    regression_alpha: float = Field(default=0.01, gt=0, lt=0.5)
    min_items: int = Field(default=50, gt=0)
    small_skills: Literal["refuse", "pool"] = "refuse"
    reported_only: tuple[str, ...] = ("ood",)


class Row(BaseModel):
    """One line of the verdict's table. `p_value` is McNemar's for kind "targets", Tango's otherwise; `passed`
    None: not tested.

    `lower_bound` is the one-sided bound, at `regression_alpha`, of challenger - champion accuracy.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kind: Kind
    items: int
    champion: float
    challenger: float
    gained: int
    lost: int
    p_value: float
    lower_bound: float
    passed: bool | None


class GateVerdict(BaseModel):
    """The decision, why, and the table behind it. `reasons` is never empty."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    promote: bool
    reasons: tuple[str, ...] = Field(min_length=1)
    table: tuple[Row, ...] = ()


def judge(
    champion: Evaluation | None,
    challenger: Evaluation | None,
    targets: Sequence[str],
    settings: GateSettings | None = None,
) -> GateVerdict:
    """Decide on promotion. Never raises: whatever is missing or odd closes the gate, with a reason."""
    chosen = settings or GateSettings()
    if champion is None or challenger is None:
        return _closed(f"there is no evaluation of the {'champion' if champion is None else 'challenger'}")
    try:
        require_same_items(champion, challenger)
        return _decide(champion, challenger, tuple(sorted(set(targets))), chosen)
    except ItemSetMismatch as exc:
        return _closed(str(exc))
    except (ArithmeticError, LookupError, TypeError, ValueError) as exc:
        return _closed(f"the evaluations could not be compared ({type(exc).__name__}: {exc})")


def _closed(reason: str) -> GateVerdict:
    return GateVerdict(promote=False, reasons=(reason,))


def _decide(
    champion: Evaluation, challenger: Evaluation, targets: tuple[str, ...], settings: GateSettings
) -> GateVerdict:
    untested = tuple(name for name in champion.strata() if _matches(name, settings.reported_only))
    ids = {skill: frozenset(champion.of_skill(skill, untested)) for skill in champion.skills()}
    missing = [skill for skill in targets if len(ids.get(skill, ())) < settings.min_items]
    if not targets or missing:
        return _closed(
            f"target skills {missing} have fewer than {settings.min_items} held-out items"
            if targets
            else "the round names no target skill"
        )
    compare = _Comparison(champion, challenger, settings)
    rows = [compare.gain(frozenset().union(*(ids[skill] for skill in targets)))]
    rows += [
        compare.loss(skill, "target" if skill in targets else "skill", kept)
        for skill, kept in _grouped(ids, targets, settings)
    ]
    rows += [
        compare.loss(
            name, "reported" if name in untested else "stratum", frozenset(champion.of_stratum(name))
        )
        for name in champion.strata()
        if not name.startswith(SKILL_STRATUM)
    ]
    refused = tuple(_reason(row, settings) for row in rows if row.passed is False)
    return GateVerdict(
        promote=not refused, reasons=refused or (_praise(rows[0], settings),), table=tuple(rows)
    )


def _grouped(
    ids: dict[str, frozenset[str]], targets: Sequence[str], settings: GateSettings
) -> Iterator[tuple[str, frozenset[str]]]:
    """Skills with items in a tested stratum; with `small_skills` "pool" the small ones as one group at the
    end."""
    pooled: set[str] = set()
    for skill, kept in ids.items():
        if not kept:
            continue
        if settings.small_skills == "pool" and len(kept) < settings.min_items and skill not in targets:
            pooled |= kept
        else:
            yield skill, kept
    if pooled:
        yield SMALL_SKILLS, frozenset(pooled)


class _Comparison:
    """Both students' outcomes by item, turned into rows."""

    def __init__(self, champion: Evaluation, challenger: Evaluation, settings: GateSettings) -> None:
        self._champion = {outcome.item_id: outcome.correct for outcome in champion.outcomes}
        self._challenger = {outcome.item_id: outcome.correct for outcome in challenger.outcomes}
        self._settings = settings

    def gain(self, ids: frozenset[str]) -> Row:
        _, _, gained, lost = self._count(ids)
        p_value = mcnemar_p(gained, lost)
        return self._row("target skills", "targets", ids, p_value, p_value <= self._settings.alpha)

    def loss(self, name: str, kind: Kind, ids: frozenset[str]) -> Row:
        _, _, gained, lost = self._count(ids)
        p_value = tango_p(gained, lost, len(ids), self._settings.margin)
        enough = len(ids) >= self._settings.min_items
        passed = None if kind == "reported" else enough and p_value <= self._settings.regression_alpha
        return self._row(name, kind, ids, p_value, passed)

    def _row(self, name: str, kind: Kind, ids: frozenset[str], p_value: float, passed: bool | None) -> Row:
        before, after, gained, lost = self._count(ids)
        bound = tango_lower_bound(gained, lost, len(ids), self._settings.regression_alpha)
        return Row(
            name=name, kind=kind, items=len(ids), champion=before / len(ids), challenger=after / len(ids),
            gained=gained, lost=lost, p_value=p_value, lower_bound=bound, passed=passed,
        )  # fmt: skip

    def _count(self, ids: frozenset[str]) -> tuple[int, int, int, int]:
        pairs = [(self._champion[key], self._challenger[key]) for key in ids]
        gained, lost = pairs.count((False, True)), pairs.count((True, False))
        return sum(before for before, _ in pairs), sum(after for _, after in pairs), gained, lost


def _reason(row: Row, settings: GateSettings) -> str:
    moved = (
        f"{row.champion:.1%} -> {row.challenger:.1%} on {row.items} items, "
        f"{row.gained} gained, {row.lost} lost"
    )
    if row.kind == "targets":
        return f"target skills: no proven gain ({moved}; McNemar p = {row.p_value:.3f} > {settings.alpha})"
    if row.items < settings.min_items:
        return f"{row.kind} {row.name}: only {row.items} held-out items, {settings.min_items} are needed"
    return (
        f"{row.kind} {row.name}: a loss of {settings.margin:.0%} is not ruled out ({moved}; "
        f"lower bound {row.lower_bound:+.1%})"
    )


def _praise(row: Row, settings: GateSettings) -> str:
    return (
        f"target skills {row.champion:.1%} -> {row.challenger:.1%} on {row.items} items "
        f"(McNemar p = {row.p_value:.2g}); no skill lost {settings.margin:.0%}"
    )


def _matches(stratum: str, names: Sequence[str]) -> bool:
    return any(stratum == name or stratum.startswith(name + ":") for name in names)
