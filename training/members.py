"""Which items of a held-out set count for which skill. Plain Python: commands that look load no numpy."""

from __future__ import annotations

from collections.abc import Sequence

from agent.items import HeldOutItem
from training.evaluate import SKILL_STRATUM, Key
from training.settings import GateSettings


def members_of(keys: Sequence[Key], untested: Sequence[str]) -> dict[str, list[int]]:
    """The places of each skill's items; items of `untested` strata count for no skill. A skill that has a
    stratum of its own is measured by that alone."""
    members: dict[str, list[int]] = {}
    strata: dict[str, list[int]] = {}
    for place, (_, stratum, skills) in enumerate(keys):
        if stratum in untested:
            continue
        strata.setdefault(stratum, []).append(place)
        for skill in set(skills):
            members.setdefault(skill, []).append(place)
    own = {
        stratum.removeprefix(SKILL_STRATUM): places
        for stratum, places in strata.items()
        if stratum.startswith(SKILL_STRATUM)
    }
    return members | own


def items_by_skill(items: Sequence[HeldOutItem], settings: GateSettings) -> dict[str, int]:
    """How many of the items the gate would count for each skill; those without any are left out."""
    keys = [(item.item_id, item.stratum, item.skills) for item in items]
    untested = [name for name in {item.stratum for item in items} if matches(name, settings.reported_only)]
    members = members_of(keys, untested)
    return {skill: len(members[skill]) for skill in sorted(members)}


def matches(stratum: str, names: Sequence[str]) -> bool:
    return any(stratum == name or stratum.startswith(name + ":") for name in names)
