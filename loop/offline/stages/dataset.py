"""Stage dataset: a strategy's plan carried out, written as question-answer pairs in the `messages` format
(paper section 3.3)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from agent.budget import Usage
from agent.catalog import SkillMap
from agent.chance import rank
from agent.items import PoolItem
from agent.plan import DataPlan, Failure, PlanInput
from agent.strategies import needs_neighbours, plan_strategy
from graphs.curate.neighbours import nearest
from loop.offline.bench import Bench
from loop.offline.folder import settings_sha256
from loop.offline.records import DatasetRow, DiagnosisRow, Message, Origin
from loop.offline.stages.diagnoses import failures_of
from loop.offline.stages.gathering import Gathered, Text, gather_draws, gather_requests
from loop.offline.stages.stage import Result, Stage
from streams.events import derived_id
from streams.files import DataError

SPARE_NEIGHBOURS = 3
"""How many neighbours beyond those wanted are looked up, so that leaving some out does not leave too few."""


def _inputs(bench: Bench) -> dict[str, str]:
    config = bench.config
    earlier = {stage: bench.folder.result_sha256(stage) for stage in ("labels", "diagnoses")}
    settings = settings_sha256(
        config.strategy, config.duplicates, config.embed, config.filters.grade, config.seed
    )
    return {**bench.data_sha256, **earlier, "teacher": bench.teacher_id, "settings": settings}


def plan_input(bench: Bench, items: Mapping[str, PoolItem], failures: Sequence[Failure]) -> PlanInput:
    """What the strategy plans from."""
    strategy = bench.config.strategy
    near: Mapping[str, Sequence[str]] = {}
    if needs_neighbours(strategy.name):
        texts = {item_id: item.question for item_id, item in items.items()}
        asked = {one.question_id: bench.data.by_id[one.question_id].question for one in failures}
        wanted = max(strategy.k_embed, strategy.references * strategy.prompts) + SPARE_NEIGHBOURS
        near = nearest(bench.embed, texts, asked, wanted)
    return PlanInput(
        skill_map=SkillMap((item_id, item.skills) for item_id, item in items.items() if item.skills),
        item_ids=list(items),
        failures=failures,
        seed=bench.config.seed,
        levels={one.item_id: one.level for one in bench.data.pool if one.level is not None},
        nearest=near,
    )


def make_plan(bench: Bench) -> DataPlan:
    """The plan of the run's strategy, from the results of the stages before. Raises
    `agent.plan.StrategyError`."""
    failures = failures_of(bench.folder.rows("diagnoses", DiagnosisRow))
    items = bench.items()
    return plan_strategy(
        bench.config.strategy.name, plan_input(bench, items, failures), bench.config.strategy
    )


def _dataset(bench: Bench) -> Result:
    items, plan, gathered = bench.items(), make_plan(bench), Gathered()
    if plan.draws:
        gather_draws(bench, plan, items, gathered)
    if plan.requests:
        gather_requests(bench, plan, items, gathered)
    rows = [_row(bench, text) for text in gathered.texts]
    rows = sorted(
        {row.id: row for row in rows}.values(),
        key=lambda row: (rank(bench.config.seed, "order", row.id), row.id),
    )
    if not rows:
        reasons = ", ".join(
            f"{reason} {count}" for reason, count in sorted(gathered.dropped.items()) if count
        )
        raise DataError(
            f"the strategy {bench.config.strategy.name} made no pair ({reasons or 'nothing was planned'})"
        )
    return Result(rows, _figures(plan, rows, gathered), _notes(bench, plan, rows))


def _row(bench: Bench, text: Text) -> DatasetRow:
    taught = text.kind != "original"
    origin = Origin(
        strategy=bench.config.strategy.name,
        part=text.draw.part,
        kind=text.kind,
        skill=text.draw.skill,
        cause=text.draw.cause,
        source_ids=text.source_ids,
        teacher=bench.teacher.name if taught else None,
        prompt_version=bench.teacher.prompt_version if taught else None,
        usage=text.usage,
    )
    messages = (Message(role="user", content=text.question), Message(role="assistant", content=text.solution))
    return DatasetRow(
        id=derived_id(text.question, f"example/{text.solution}"),
        messages=messages,
        skills=text.skills,
        origin=origin,
    )


def _figures(plan: DataPlan, rows: Sequence[DatasetRow], gathered: Gathered) -> dict[str, float]:
    usage = sum((row.origin.usage for row in rows), Usage())
    figures: dict[str, float] = {
        "draws": len(plan.draws),
        "unique questions drawn": plan.unique_items,
        "requests": len(plan.requests),
        "pairs": len(rows),
        "unique questions": len({row.messages[0].content for row in rows}),
    }
    figures |= {
        f"pairs {kind}": count
        for kind, count in sorted(Counter(str(row.origin.kind) for row in rows).items())
    }
    figures |= {
        f"pairs of part {part}": count
        for part, count in sorted(Counter(row.origin.part for row in rows).items())
    }
    figures |= {f"dropped {reason}": count for reason, count in sorted(gathered.dropped.items()) if count}
    return figures | {
        "teacher calls": usage.calls,
        "teacher tokens": usage.prompt_tokens + usage.completion_tokens,
        "usd": usage.usd,
    }


def _notes(bench: Bench, plan: DataPlan, rows: Sequence[DatasetRow]) -> list[str]:
    notes = [
        f"the pool has no question of {skill!r}, missing in {count} answers"
        for skill, count in sorted(plan.empty_skills.items())
    ]
    wanted = bench.config.strategy.pairs
    if len(rows) < wanted:
        notes.append(
            f"{len(rows)} pairs instead of {wanted}: "
            "for more, raise k_sel, answers, prompts or the number of validation questions"
        )
    return notes


def dataset(name: str) -> Stage:
    """The stage; `name` is that of its file."""
    return Stage(name, _inputs, _dataset)
