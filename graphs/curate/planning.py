"""From what the student fails at to the data plan of a strategy: one way for the loop and for files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from agent.catalog import SkillMap
from agent.items import PoolItem
from agent.plan import DataPlan, Failure, PlanInput, StrategyName, StrategySettings
from agent.strategies import needs_neighbours, plan_strategy
from graphs.curate.neighbours import Embed, nearest

SPARE_NEIGHBOURS = 3
"""How many neighbours beyond those wanted are looked up, so that leaving some out does not leave too few."""


@dataclass(frozen=True)
class Evidence:
    """What strategies plan from: the failures, the texts of their questions by id where they are known, and
    the difficulty of pool items where it is."""

    failures: Sequence[Failure]
    questions: Mapping[str, str] = field(default_factory=dict)
    levels: Mapping[str, int] = field(default_factory=dict)


def plan_data(
    name: StrategyName,
    pool: Mapping[str, PoolItem],
    evidence: Evidence,
    seed: int,
    settings: StrategySettings,
    embed: Embed,
) -> DataPlan:
    """The plan of the strategy `name`. Raises `agent.plan.StrategyError` for evidence that does not
    suffice."""
    near: Mapping[str, Sequence[str]] = {}
    if needs_neighbours(name):
        texts = {item_id: item.question for item_id, item in pool.items()}
        failed = {failure.question_id for failure in evidence.failures}
        asked = {item_id: text for item_id, text in evidence.questions.items() if item_id in failed}
        wanted = max(settings.k_embed, settings.references * settings.prompts) + SPARE_NEIGHBOURS
        near = nearest(embed, texts, asked, wanted)
    known = PlanInput(
        skill_map=SkillMap((item_id, item.skills) for item_id, item in pool.items() if item.skills),
        item_ids=list(pool),
        failures=evidence.failures,
        seed=seed,
        levels=evidence.levels,
        nearest=near,
    )
    return plan_strategy(name, known, settings)
