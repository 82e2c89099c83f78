"""The catalog graph inside a run: its checkpoints and its result lie in the run's `work/`, so a kill asks
nothing twice."""

from __future__ import annotations

from graphs.catalog.graph import build_catalog, run_catalog
from graphs.catalog.plan import CatalogContext, CatalogItem, CatalogPlan, Catalogued
from graphs.checkpoints import sqlite_checkpoints
from loop.offline.bench import Bench
from loop.tasks.questions import subject_key
from streams.files import text_sha256, write_text


def catalogued(bench: Bench) -> Catalogued:
    """The teacher's catalog of the pool and its labels (paper section 3.1), made once for one pool, plan and
    teacher.

    Raises `graphs.catalog.plan.EmptyCatalog` and what the teacher raises.
    """
    plan = CatalogPlan(
        skills_per_subject=bench.config.catalog.skills_per_subject,
        names_per_prompt=max(150, 2 * bench.config.catalog.skills_per_subject),
    )
    items = [
        CatalogItem(item_id=item.item_id, question=item.question, subject=subject_key(item.subject))
        for item in bench.data.pool
    ]
    context = CatalogContext(bench.teacher, items, bench.crash)
    run_id = text_sha256(plan.model_dump_json(), context.fingerprint, bench.teacher_id)[:16]
    kept = bench.folder.work / f"catalog-{run_id}.json"
    if kept.is_file():
        return Catalogued.model_validate_json(kept.read_bytes())
    with sqlite_checkpoints(bench.folder.work / "catalog.sqlite") as saver:
        graph = build_catalog(saver)
        return run_catalog(
            graph,
            run_id,
            plan,
            context,
            lambda done: write_text(kept, done.model_dump_json()),
            bench.runner.concurrency,
        )
