"""Tables that several commands show."""

from __future__ import annotations

from rich.table import Table

from agent.posterior import Profile


def accuracy_line(profile: Profile) -> str:
    accuracy = "unknown" if profile.accuracy is None else f"{100 * profile.accuracy:.1f} %"
    return f"version {profile.version}, rolling accuracy {accuracy} over {profile.answers} answers"


def profile_table(profile: Profile, alarms: set[str]) -> Table:
    """The missing-skill profile with 90 % intervals, most harmful skill first."""
    table = Table(title=f"Missing-Skill-Profile: {accuracy_line(profile)}", title_justify="left")
    for name in ("skill", "needed", "missing", "miss rate", "90 % interval", "share", "priority", "drift"):
        table.add_column(name, justify="left" if name in ("skill", "drift") else "right")
    for row in profile.skills:
        interval = f"{row.low:.2f} - {row.high:.2f}"
        cells = (
            row.skill,
            str(row.raw.needed),
            str(row.raw.missing),
            f"{row.mean:.2f}",
            interval,
            f"{row.share:.1%}",
            f"{row.priority:.3f}",
        )
        table.add_row(*cells, "alarm" if row.skill in alarms else "")
    return table
