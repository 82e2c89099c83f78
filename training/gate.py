"""The gate: may the challenger replace the champion? Closed by default, and able to open on a catalog of
hundreds of skills.

It opens when all of these hold, item by item on one fixed held-out set (decision 0027 has the operating
characteristics):
1. the target skills gain: exact sign-flip (McNemar) test on their pooled items, so equal students pass in at
   most `alpha`;
2. the traffic-weighted whole is shown not worse by `whole_margin`, each evaluation set and each protected
   skill by `margin` (Tango 1998). Each must pass, so none needs a stricter level; the power must be planned
   for their number (Schultzberg, Ankargren, Frånberg 2024, arXiv 2402.11609);
3. no harm is found by a search over everything: the whole, all items but the targets', what needs several
   skills, every set, every skill and every pair of skills with `min_items` items against the champion, and
   the whole, what needs several, skills and pairs against the earlier champions (so that small losses cannot
   add up). Asked whether each skill is *proven* unharmed a long catalog never passes; here a false alarm
   anywhere closes at most `harm_rate` of good rounds (training/harm.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from training.comparison import Comparison, Layout, compare, layout_of, pairs_of, traffic_weights
from training.errors import EvaluationFailed
from training.evaluate import SKILL_STRATUM, Evaluation
from training.members import items_by_skill as items_by_skill
from training.members import matches
from training.paired import sign_flip_p, tango_lower_bound, tango_score, upper_tail
from training.search import CHAMPION, Look, Search, marks
from training.settings import GateSettings as GateSettings
from training.verdict import GateVerdict as GateVerdict
from training.verdict import Kind, Row


def judge(
    champion: Evaluation | None,
    challenger: Evaluation | None,
    targets: Sequence[str],
    settings: GateSettings | None = None,
    *,
    weights: Mapping[str, float] | None = None,
    history: Sequence[Evaluation] = (),
) -> GateVerdict:
    """Decide on promotion. Never raises: whatever is missing or odd closes the gate, with a reason.

    `weights`: the skills' shares of traffic; None weighs items as they are. `history`: earlier champions'
    evaluations on the same items, oldest first, the present champion's not among them.
    """
    chosen = settings or GateSettings()
    if champion is None or challenger is None:
        return _closed(f"there is no evaluation of the {'champion' if champion is None else 'challenger'}")
    try:
        case = _Case.of(champion, challenger, tuple(sorted(set(targets))), chosen, weights, history)
        unready = tuple(_unready(champion, challenger, case))
        return GateVerdict(promote=False, reasons=unready) if unready else _decide(case)
    except EvaluationFailed as exc:
        return _closed(str(exc))
    except (ArithmeticError, LookupError, TypeError, ValueError) as exc:
        return _closed(f"the evaluations could not be compared ({type(exc).__name__}: {exc})")


def _closed(reason: str) -> GateVerdict:
    return GateVerdict(promote=False, reasons=(reason,))


@dataclass(frozen=True)
class _Case:
    """One decision: the items, the challenger beside the champion and earlier champions, and the settings."""

    layout: Layout
    search: Search
    targets: tuple[str, ...]
    untested: tuple[str, ...]
    settings: GateSettings

    @property
    def champion(self) -> Comparison:
        return self.search.references[CHAMPION]

    @classmethod
    def of(
        cls,
        champion: Evaluation,
        challenger: Evaluation,
        targets: tuple[str, ...],
        settings: GateSettings,
        weights: Mapping[str, float] | None,
        history: Sequence[Evaluation],
    ) -> _Case:
        untested = tuple(name for name in champion.strata() if matches(name, settings.reported_only))
        references = {CHAMPION: compare(challenger, champion)}
        for place, earlier in enumerate(history, 1):
            references[f"earlier champion {place} of {len(history)}"] = compare(challenger, earlier)
        layout = layout_of(challenger.keys, untested)
        target_items = layout.needing(targets).astype(np.float64)
        pairs = pairs_of(challenger.keys, untested, settings.min_items)
        search = Search(layout, pairs, references, traffic_weights(layout, weights), target_items)
        return cls(layout, search, targets, untested, settings)


def _unready(champion: Evaluation, challenger: Evaluation, case: _Case) -> Iterator[str]:
    """Reasons to decide nothing."""
    settings = case.settings
    for name, evaluation in ((CHAMPION, champion), ("challenger", challenger)):
        if evaluation.undecided() > settings.max_undecided:
            share = f"{evaluation.undecided():.1%} of the {name}'s answers to {len(evaluation.rates)} items"
            yield f"the grader could not decide {share}; at most {settings.max_undecided:.1%} may be"
    decided = dict(zip(case.layout.skills, case.layout.by_skill(case.champion.decided).tolist(), strict=True))
    short = [skill for skill in case.targets if decided.get(skill, 0) < settings.min_items]
    if short:
        yield f"target skills {short} have fewer than {settings.min_items} held-out items"
    if not case.targets:
        yield "the round names no target skill"
    for skill in sorted(set(settings.protected) - {name for name, items in decided.items() if items > 0}):
        yield f"protected skill {skill} has no held-out item; nothing can be shown about it"


def _decide(case: _Case) -> GateVerdict:
    search, settings = case.search, case.settings
    looks: list[tuple[Look, float | None]] = [
        (search.group("target skills", "targets", CHAMPION, search.targets), None)
    ]
    # beside earlier champions only what closes the gate is told
    looks += [
        (look, harm)
        for look, harm in search.looks()
        if look.against == CHAMPION or harm <= settings.harm_rate
    ]
    looks += [(look, None) for look in (*_protected_beside_earlier(case), *_reported(case))]
    rows = _rows(looks, case)
    refused = tuple(_reason(row, settings) for row in rows if row.passed is False)
    return GateVerdict(promote=not refused, reasons=refused or (_praise(rows, case),), table=tuple(rows))


def _protected_beside_earlier(case: _Case) -> Iterator[Look]:
    for name in case.search.references:
        if name != CHAMPION:
            yield from (case.search.skill(skill, name) for skill in sorted(set(case.settings.protected)))


def _reported(case: _Case) -> Iterator[Look]:
    for name in case.untested:
        if not name.startswith(SKILL_STRATUM):
            yield case.search.group(
                name, "reported", CHAMPION, marks(case.layout.strata[name], len(case.search.traffic))
            )


def _rows(looks: Sequence[tuple[Look, float | None]], case: _Case) -> list[Row]:
    """The looks, each with its adjusted p-value of harm, as lines of the table."""
    settings, kinds = case.settings, [_kind(look, case) for look, _ in looks]
    gained, lost, items = np.array([look.counts for look, _ in looks]).T
    alphas = np.array(
        [settings.regression_alpha if kind == "protected" else settings.alpha for kind in kinds]
    )
    margins = np.array([settings.whole_margin if kind == "whole" else settings.margin for kind in kinds])
    some = np.maximum(items, 1e-9)
    bounds = np.where(items > 0, tango_lower_bound(gained, lost, some, alphas), -1.0).tolist()
    p_values = [
        upper_tail(z)
        for z in np.where(items > 0, tango_score(gained, lost, some, -margins), -np.inf).tolist()
    ]
    p_values[0] = sign_flip_p(case.champion.difference[case.search.targets * case.champion.decided > 0])
    return [
        Row(
            name=look.name, kind=kind, items=look.items, champion=look.shares[0], challenger=look.shares[1],
            gained=round(look.counts.gained, 6), lost=round(look.counts.lost, 6), p_value=p_value,
            lower_bound=bound, passed=_passed(look, kind, p_value, harm, settings), harm=harm,
            against=look.against,
        )
        for (look, harm), kind, p_value, bound in zip(looks, kinds, p_values, bounds, strict=True)
    ]  # fmt: skip


def _passed(
    look: Look, kind: Kind, p_value: float, harm: float | None, settings: GateSettings
) -> bool | None:
    if kind == "reported":
        return None
    harmless = harm is None or harm > settings.harm_rate
    if kind == "protected":
        return harmless and p_value <= settings.regression_alpha
    if kind == "targets":
        return p_value <= settings.alpha
    if kind in ("whole", "stratum") and look.against == CHAMPION:
        return harmless and p_value <= settings.alpha
    return harmless


def _kind(look: Look, case: _Case) -> Kind:
    if look.kind != "skill":
        return look.kind
    if look.name in case.settings.protected:
        return "protected"
    return "target" if look.name in case.targets else "skill"


def _reason(row: Row, settings: GateSettings) -> str:
    moved = f"{row.champion:.1%} -> {row.challenger:.1%} on {row.items} items"
    moved += f", {row.gained:.4g} gained, {row.lost:.4g} lost"
    if row.kind == "targets":
        return f"target skills: no proven gain ({moved}; McNemar p = {row.p_value:.3f} > {settings.alpha})"
    name = {"whole": row.kind, "several": row.name}.get(row.kind, f"{row.kind} {row.name}")
    beside = "" if row.against == CHAMPION else f" since {row.against}"
    if row.harmed(settings.harm_rate):
        return f"{name}: it lost{beside} ({moved}; p = {row.harm:.2g} with all looks counted)"
    margin = settings.whole_margin if row.kind == "whole" else settings.margin
    bound = f"lower bound {row.lower_bound:+.1%}"
    return f"{name}: a loss of {margin:.0%}{beside} is not ruled out ({moved}; {bound})"


def _praise(rows: Sequence[Row], case: _Case) -> str:
    gain, whole, pairs = rows[0], rows[1], len(case.search.pairs.skills)
    searched = f"{len(case.layout.skills)} skills" + (f" and {pairs} pairs" if pairs else "")
    return (
        f"target skills {gain.champion:.1%} -> {gain.challenger:.1%} on {gain.items} items "
        f"(McNemar p = {gain.p_value:.2g}); the whole {whole.champion:.1%} -> {whole.challenger:.1%}; "
        f"no harm found in {searched}"
    )
