"""Catalog and skill map."""

import pytest
from pydantic import ValidationError

from agent.catalog import Skill, SkillCatalog, SkillMap, UnknownSkill

CATALOG = SkillCatalog.of(("fraction_addition", "add fractions"), ("gcd", "greatest common divisor"))


def test_unknown_skill_names_the_nearest() -> None:
    with pytest.raises(UnknownSkill, match="did you mean 'fraction_addition'") as caught:
        CATALOG.get("fraction_additon")
    assert caught.value.nearest == "fraction_addition"


def test_unknown_skill_without_a_neighbour_says_what_to_do() -> None:
    assert "add it to the catalog" in str(UnknownSkill("zzz", CATALOG.names))


@pytest.mark.parametrize("name", ["*", "", " gcd"])
def test_reserved_and_sloppy_names_are_refused(name: str) -> None:
    with pytest.raises(ValidationError):
        Skill(name=name)


def test_a_name_comes_once() -> None:
    with pytest.raises(ValidationError, match="twice"):
        SkillCatalog.of(("gcd", ""), ("gcd", ""))


def test_catalog_round_trips_through_json() -> None:
    assert SkillCatalog.model_validate_json(CATALOG.model_dump_json()) == CATALOG


def test_map_is_multi_label_and_independent_of_order() -> None:
    pairs = [("q3", ("gcd",)), ("q1", ("gcd", "fraction_addition")), ("q2", ("gcd",))]
    one, other = SkillMap(pairs, CATALOG), SkillMap(reversed(pairs), CATALOG)
    assert one.items("gcd") == other.items("gcd") == ("q1", "q2", "q3")
    assert one.skills("q1") == ("gcd", "fraction_addition")
    assert one.items("nothing") == () and "q9" not in one and len(one) == 3


def test_map_accepts_a_repeated_pair_and_refuses_a_contradiction() -> None:
    assert len(SkillMap([("q1", ("gcd",)), ("q1", ("gcd",))])) == 1
    with pytest.raises(ValueError, match="different skills"):
        SkillMap([("q1", ("gcd",)), ("q1", ("add",))])


@pytest.mark.parametrize("skills", [(), tuple("abcdef")])
def test_map_wants_one_to_five_skills(skills: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="1 to 5"):
        SkillMap([("q1", skills)])


def test_map_checks_the_catalog() -> None:
    with pytest.raises(UnknownSkill):
        SkillMap([("q1", ("gdc",))], CATALOG)
