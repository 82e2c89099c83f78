"""Which skills exist, and which item needs which: the catalog and the skill map (paper section 3.1, arXiv
2510.10023)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from functools import cached_property
from types import MappingProxyType

from pydantic import Field, field_validator

from agent.errors import AgentError
from agent.items import Frozen

MAX_SKILLS_PER_ITEM = 5
"""A question is labelled with at most this many skills (paper section 3.1)."""


class UnknownSkill(AgentError, KeyError):
    """A skill name that the catalog or the map does not have; the message suggests the nearest one.

    Examples
    --------
    >>> str(UnknownSkill("additon", ("addition", "gcd")))
    "unknown skill 'additon': did you mean 'addition'?"
    """

    def __init__(self, name: str, known: Iterable[str]) -> None:
        self.name = name
        near = difflib.get_close_matches(name, list(known), n=1)
        self.nearest: str | None = near[0] if near else None
        hint = f"did you mean {self.nearest!r}?" if near else "add it to the catalog, or correct the label"
        super().__init__(f"unknown skill {name!r}: {hint}")

    def __str__(self) -> str:
        return str(self.args[0])


class Skill(Frozen):
    """One skill that can be taught. No name begins with `*`: the profile's own rows do."""

    name: str = Field(min_length=1, max_length=197)
    description: str = ""

    @field_validator("name")
    @classmethod
    def _not_reserved(cls, name: str) -> str:
        if name.startswith("*") or name != name.strip():
            raise ValueError(
                f"skill name {name!r}: a leading '*' is reserved, and no name starts or ends with a blank"
            )
        return name


class SkillCatalog(Frozen):
    """The skills of a subject, in a fixed order, each name once.

    Examples
    --------
    >>> catalog = SkillCatalog.of(("add", "plus"), ("gcd", "greatest common divisor"))
    >>> "gcd" in catalog, len(catalog), catalog.names
    (True, 2, ('add', 'gcd'))
    >>> catalog.get("gcd").description
    'greatest common divisor'
    """

    skills: tuple[Skill, ...]

    @field_validator("skills")
    @classmethod
    def _names_once(cls, skills: tuple[Skill, ...]) -> tuple[Skill, ...]:
        names = [skill.name for skill in skills]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"skills named twice in the catalog: {', '.join(twice)}")
        return skills

    @classmethod
    def of(cls, *pairs: tuple[str, str]) -> SkillCatalog:
        """Build a catalog from (name, description) pairs."""
        return cls(skills=tuple(Skill(name=name, description=description) for name, description in pairs))

    @cached_property
    def _by_name(self) -> dict[str, Skill]:
        return {skill.name: skill for skill in self.skills}

    @property
    def names(self) -> tuple[str, ...]:
        """The names, in catalog order."""
        return tuple(self._by_name)

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def __len__(self) -> int:
        return len(self.skills)

    def get(self, name: str) -> Skill:
        """Return the skill called `name`.

        Raises
        ------
        UnknownSkill
            When there is none; it names the nearest.
        """
        try:
            return self._by_name[name]
        except KeyError:
            raise UnknownSkill(name, self._by_name) from None


class SkillMap:
    """Multi-label map between items and skills, both ways; item ids are kept sorted, so nothing depends on
    input order.

    Parameters
    ----------
    pairs : iterable of (item_id, skills)
        Each item with the one to five skills it needs. The same pair may come twice.
    catalog : SkillCatalog, optional
        When given, a label outside it is an error.

    Raises
    ------
    ValueError
        When an item has more than five labels or none, or comes twice with different labels.
    UnknownSkill
        When a label is not in `catalog`.

    Examples
    --------
    >>> skill_map = SkillMap([("q2", ("add", "gcd")), ("q1", ("add",))])
    >>> skill_map.items("add"), skill_map.skills("q2"), skill_map.sizes
    (('q1', 'q2'), ('add', 'gcd'), mappingproxy({'add': 2, 'gcd': 1}))
    """

    def __init__(
        self, pairs: Iterable[tuple[str, Iterable[str]]], catalog: SkillCatalog | None = None
    ) -> None:
        labels: dict[str, tuple[str, ...]] = {}
        for item_id, names in pairs:
            skills = _checked(item_id, names, catalog)
            if labels.setdefault(item_id, skills) != skills:
                raise ValueError(
                    f"item {item_id!r} comes twice with different skills: {labels[item_id]} and {skills}"
                )
        inverse: dict[str, list[str]] = {}
        for item_id in sorted(labels):
            for name in labels[item_id]:
                inverse.setdefault(name, []).append(item_id)
        self._skills = labels
        self._items = {name: tuple(inverse[name]) for name in sorted(inverse)}

    @property
    def sizes(self) -> Mapping[str, int]:
        """Distinct items per skill, by skill name."""
        return MappingProxyType({name: len(items) for name, items in self._items.items()})

    def items(self, skill: str) -> tuple[str, ...]:
        """Ids of the items that need `skill`, sorted; empty when no item does."""
        return self._items.get(skill, ())

    def skills(self, item_id: str) -> tuple[str, ...]:
        """The skills of one item, in label order; raises KeyError when the item is unknown."""
        return self._skills[item_id]

    def __len__(self) -> int:
        return len(self._skills)

    def __contains__(self, item_id: object) -> bool:
        return item_id in self._skills


def _checked(item_id: str, names: Iterable[str], catalog: SkillCatalog | None) -> tuple[str, ...]:
    skills = tuple(dict.fromkeys(names))
    if not 1 <= len(skills) <= MAX_SKILLS_PER_ITEM:
        raise ValueError(
            f"item {item_id!r} has {len(skills)} skills; label it with 1 to {MAX_SKILLS_PER_ITEM}"
        )
    if catalog is not None:
        for name in skills:
            catalog.get(name)
    return skills
