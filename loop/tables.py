"""Tables that several commands show."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from agent.pairs import PairMisses
from agent.posterior import Coverage, Profile
from training.verdict import PAIRED, GateVerdict


def accuracy_line(profile: Profile) -> str:
    accuracy = "unknown" if profile.accuracy is None else f"{100 * profile.accuracy:.1f} %"
    return f"version {profile.version}, rolling accuracy {accuracy} over {profile.answers} answers"


def coverage_line(coverage: Coverage) -> str:
    """What the estimates rest on: how many answers could be judged, labelled and explained."""
    if not coverage.watched:
        return "coverage: not recorded by these diagnoses"
    parts = (
        f"{coverage.judged} of {coverage.watched} answers judged",
        f"{coverage.labelled} of those labelled",
        f"{coverage.explained} of {coverage.wrong} wrong ones explained",
    )
    return f"coverage: {', '.join(parts)}"


def abstention_line(coverage: Coverage) -> str:
    """The answers that say nothing of any skill: nobody could judge them, or explain why they are wrong."""
    undecided, unexplained = coverage.watched - coverage.judged, coverage.wrong - coverage.explained
    return f"abstentions: {undecided} answers undecided, {unexplained} wrong ones unexplained"


def profile_table(profile: Profile, alarms: set[str]) -> Table:
    """The missing-skill profile with 90 % intervals, most harmful skill first."""
    table = Table(title=f"Missing-Skill-Profile: {accuracy_line(profile)}", title_justify="left")
    names = (
        "skill",
        "needed",
        "missing",
        "explained",
        "miss rate",
        "90 % interval",
        "share",
        "priority",
        "drift",
    )
    for name in names:
        table.add_column(name, justify="left" if name in ("skill", "drift") else "right")
    for row in profile.skills:
        interval = f"{row.low:.2f} - {row.high:.2f}"
        cells = (
            row.skill,
            str(row.raw.needed),
            str(row.raw.missing),
            "" if row.explained is None else f"{row.explained:.0%}",
            f"{row.mean:.2f}",
            interval,
            f"{row.share:.1%}",
            f"{row.priority:.3f}",
        )
        table.add_row(*cells, "alarm" if row.skill in alarms else "")
    return table


def pairs_table(rows: Sequence[PairMisses], version: int) -> Table:
    """How often questions fail that need two skills, beside what is expected of the two alone."""
    title = f"Questions that need two skills, version {version}: worse than expected first"
    table = Table(title=title, title_justify="left")
    for name in ("skills", "answers", "wrong", "90 % interval", "expected", ""):
        table.add_column(name, justify="left" if name in ("skills", "") else "right")
    for row in rows:
        table.add_row(
            PAIRED.join(row.pair), str(row.answers), f"{row.wrong / row.answers:.2f}",
            f"{row.low:.2f} - {row.high:.2f}", "" if row.expected is None else f"{row.expected:.2f}",
            "worse together" if row.worse_together else "",
        )  # fmt: skip
    return table


def verdict_table(verdict: GateVerdict) -> Table:
    """The gate's comparisons, row by row; of pairs of skills those that failed or lost more than gained."""
    told = f"gate: {'open' if verdict.promote else 'closed'}: {'; '.join(verdict.reasons)}"
    shown = [
        row for row in verdict.table if row.kind != "pair" or row.passed is False or row.lost > row.gained
    ]
    unharmed = len(verdict.table) - len(shown)
    caption = f"and {unharmed} pairs of skills that have lost no more than gained" if unharmed else None
    table = Table(title=told, title_justify="left", caption=caption)
    names = ("what", "kind", "items", "champion", "challenger", "gained", "lost", "p", "bound", "passed")
    for name in names:
        table.add_column(name)
    for row in shown:
        table.add_row(
            row.name,
            row.kind,
            str(row.items),
            f"{row.champion:.1%}",
            f"{row.challenger:.1%}",
            f"{row.gained:.3g}",
            f"{row.lost:.3g}",
            f"{row.p_value:.2g}",
            f"{row.lower_bound:+.1%}",
            {True: "yes", False: "NO", None: "not tested"}[row.passed],
        )
    return table
