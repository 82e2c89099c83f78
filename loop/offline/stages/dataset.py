"""Stage dataset: a strategy's plan carried out by the curate graph, written as question-answer pairs in the
`messages` format (paper section 3.3)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

from agent.chance import rank
from agent.items import Example
from agent.plan import DataPlan
from graphs.checkpoints import sqlite_checkpoints
from graphs.curate.graph import build_curate, run_curation
from graphs.curate.plan import CurateContext, Curation, CurationPlan, CurationReport, NothingCurated
from graphs.curate.planning import Evidence, plan_data
from loop.offline.bench import Bench
from loop.offline.folder import settings_sha256
from loop.offline.records import DatasetRow, DiagnosisRow, Message, Origin
from loop.offline.stages.diagnoses import failures_of
from loop.offline.stages.stage import Result, Stage
from streams.files import DataError, text_sha256


def _inputs(bench: Bench) -> dict[str, str]:
    config = bench.config
    earlier = {stage: bench.folder.result_sha256(stage) for stage in ("labels", "diagnoses")}
    settings = settings_sha256(
        config.strategy, config.duplicates, config.embed, config.filters.grade, config.seed
    )
    return {**bench.data_sha256, **earlier, "teacher": bench.teacher_id, "settings": settings}


def make_plan(bench: Bench) -> DataPlan:
    """The plan of the run's strategy, from the results of the stages before. Raises
    `agent.plan.StrategyError`."""
    failures = failures_of(bench.folder.rows("diagnoses", DiagnosisRow))
    evidence = Evidence(
        failures,
        {failure.question_id: bench.data.by_id[failure.question_id].question for failure in failures},
        {item.item_id: item.level for item in bench.data.pool if item.level is not None},
    )
    strategy, config = bench.config.strategy, bench.config
    return plan_data(strategy.name, bench.items(), evidence, config.seed, strategy, bench.embed)


def curation_plan(bench: Bench) -> CurationPlan:
    """The strategy's plan with the rules of the run."""
    config = bench.config
    return CurationPlan(
        seed=config.seed,
        data=make_plan(bench),
        pairs=config.strategy.pairs,
        strategy=config.strategy,
        duplicates=config.duplicates,
    )


def curated(bench: Bench, plan: CurationPlan) -> Curation:
    """The curate graph's result; its checkpoints lie in the run's `work/`. Raises
    `graphs.curate.plan.NothingCurated` and what the teacher raises."""
    run_id = text_sha256(json.dumps(_inputs(bench), sort_keys=True), plan.model_dump_json())[:16]
    context = CurateContext(
        teacher=bench.teacher,
        pool=list(bench.items().values()),
        held_out=bench.data.untouchable,
        grade=lambda expected, answer: bench.grade("", expected, answer),
        progress=bench.runner.progress,
        crash=bench.crash,
    )
    with sqlite_checkpoints(bench.folder.work / "curation.sqlite") as saver:
        graph = build_curate(saver)
        return run_curation(graph, run_id, plan, context, max_concurrency=bench.runner.concurrency)


def _dataset(bench: Bench) -> Result:
    plan = curation_plan(bench)
    try:
        made = curated(bench, plan)
    except NothingCurated as exc:
        raise DataError(
            f"the strategy {bench.config.strategy.name} made no pair ({exc.report.reasons})"
        ) from exc
    rows = sorted(
        (_row(bench, example) for example in made.examples),
        key=lambda row: (rank(plan.seed, "order", row.id), row.id),
    )
    return Result(rows, _figures(plan.data, rows, made.report), _notes(bench, plan.data, rows))


def _row(bench: Bench, example: Example) -> DatasetRow:
    where = example.provenance
    taught = "synthesized" if where.strategy == "synthesize" else "rewritten"
    origin = Origin(
        strategy=bench.config.strategy.name,
        part=where.part,
        kind=taught if where.teacher else "original",
        skill=where.skill,
        cause=where.cause,
        source_ids=where.source_ids,
        teacher=where.teacher,
        prompt_version=where.prompt_version,
        usage=where.usage,
    )
    turns = (
        Message(role="user", content=example.prompt),
        Message(role="assistant", content=example.completion),
    )
    return DatasetRow(id=example.example_id, messages=turns, skills=example.skills, origin=origin)


def _figures(plan: DataPlan, rows: Sequence[DatasetRow], report: CurationReport) -> dict[str, float]:
    usage = report.usage
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
    figures |= {f"dropped {reason}": count for reason, count in report.dropped.items()}
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
