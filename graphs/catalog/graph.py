"""The catalog graph: from questions to a skill catalog per subject and up to five labels per question.
Durable like the curate graph.

    START ─► name (fan-out) ─► gather ─► cluster (fan-out) ─► gather ─► ... ─► relabel (fan-out) ─► assemble

Every question gets a fine name; the distinct names of a subject are clustered in batches of a bounded size,
and the batches' clusters again until one batch is left: that is the catalog. Then every question is labelled
anew from it. A list of names the teacher cannot group stands for itself by its commonest names; a question it
cannot label is reported.
"""

from __future__ import annotations

import operator
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, Any

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import RetryPolicy, Send
from typing_extensions import TypedDict

from agent.budget import Usage
from agent.catalog import Skill, SkillCatalog
from agent.items import JsonObject
from graphs import durable
from graphs.catalog.plan import CatalogContext, CatalogPlan, Catalogued, EmptyCatalog, ItemsChanged
from graphs.curate.steps import total
from graphs.labels import checked


class Named(TypedDict):
    """Fine names of one task's questions of one subject, each with how often it was given."""

    subject: str
    names: dict[str, int]


class NameBatch(TypedDict):
    """Names to be clustered in one prompt, the commonest first; `last` when they are all that is left of the
    subject."""

    level: int
    at: int
    subject: str
    names: list[str]
    last: bool


class Clustered(TypedDict):
    """What became of a batch; `grouped` is false when the teacher abstained."""

    batch: NameBatch
    skills: list[dict[str, str]]
    grouped: bool


class CatalogState(TypedDict, total=False):
    """What is checkpointed: plain dictionaries, lists, strings and numbers (strict msgpack)."""

    plan: JsonObject
    named: Annotated[list[Named], operator.add]
    level: int
    batches: list[NameBatch]
    clustered: Annotated[list[Clustered], operator.add]
    labels: Annotated[list[tuple[str, list[str]]], operator.add]
    usage: Annotated[list[dict[str, float]], operator.add]
    catalogued: JsonObject


class ItemsTask(TypedDict):
    """Items of one fan-out task, and (for relabelling) the skills of their subject."""

    items: list[str]
    skills: list[str]


def _plan_of(state: CatalogState) -> CatalogPlan:
    return CatalogPlan.model_validate(state["plan"]["plan"])


def _name(task: ItemsTask, context: CatalogContext) -> CatalogState:
    names: dict[str, Counter[str]] = {}
    usage = Usage()
    for item in (context.by_id[item_id] for item_id in task["items"]):
        reply = context.teacher.name_skill(item.question)
        usage = usage + reply.usage
        if reply.name:
            names.setdefault(item.subject, Counter())[reply.name] += 1
    named = [Named(subject=subject, names=dict(counts)) for subject, counts in names.items()]
    return {"named": named, "usage": [usage.model_dump()]}


def _gather(state: CatalogState, context: CatalogContext) -> CatalogState:
    """The next batches: of the fine names at first, then of what their clusters are called, until each
    subject had its last one."""
    level = state.get("level", 0)
    lists = _fine_names(state["named"]) if level == 0 else _names_left(state["clustered"], level)
    batches: list[NameBatch] = []
    for subject in sorted(lists):
        parts = _even(lists[subject], _plan_of(state).names_per_prompt)
        last = len(parts) == 1
        batches += [
            NameBatch(level=level + 1, at=at, subject=subject, names=part, last=last)
            for at, part in enumerate(parts)
        ]
    if level == 0 and not batches:
        raise EmptyCatalog(
            "the teacher named no skill for any question: "
            "look at its replies, and whether the questions are in its language"
        )
    return {"level": level + 1, "batches": batches}


def _fine_names(named: Sequence[Named]) -> dict[str, list[str]]:
    counts: dict[str, Counter[str]] = {}
    for reply in named:
        counts.setdefault(reply["subject"], Counter()).update(reply["names"])
    return {
        subject: sorted(names, key=lambda name: (-names[name], name)) for subject, names in counts.items()
    }


def _names_left(clustered: Sequence[Clustered], level: int) -> dict[str, list[str]]:
    """Names of the clusters of one level, for the subjects that had several batches."""
    names_of: dict[str, dict[str, None]] = {}
    for cluster in sorted(clustered, key=lambda cluster: cluster["batch"]["at"]):
        if cluster["batch"]["level"] == level and not cluster["batch"]["last"]:
            names_of.setdefault(cluster["batch"]["subject"], {}).update(
                dict.fromkeys(skill["name"] for skill in cluster["skills"])
            )
    return {subject: list(names) for subject, names in names_of.items()}


def _even(names: Sequence[str], size: int) -> list[list[str]]:
    """Parts of about equal length, none longer than `size`; every part has common and rare names."""
    parts = -(-len(names) // size)
    return [list(names[at::parts]) for at in range(parts)]


class ClusterTask(TypedDict):
    """One batch and how many skills may come of it."""

    batch: NameBatch
    at_most: int


def _cluster(task: ClusterTask, context: CatalogContext) -> CatalogState:
    batch, at_most = task["batch"], task["at_most"]
    reply = context.teacher.cluster(batch["names"], at_most)
    skills = reply.skills[:at_most] or tuple(Skill(name=name) for name in batch["names"][:at_most])
    plain = [{"name": skill.name, "description": skill.description} for skill in skills]
    return {
        "clustered": [Clustered(batch=batch, skills=plain, grouped=bool(reply.skills))],
        "usage": [reply.usage.model_dump()],
    }


def _relabel(task: ItemsTask, context: CatalogContext) -> CatalogState:
    labels: list[tuple[str, list[str]]] = []
    usage = Usage()
    for item_id in task["items"]:
        reply = context.teacher.label(context.by_id[item_id].question, task["skills"])
        labels.append((item_id, list(checked(reply, task["skills"]).skills)))
        usage = usage + reply.usage
    return {"labels": labels, "usage": [usage.model_dump()]}


def _assemble(state: CatalogState, context: CatalogContext) -> CatalogState:
    labels = {item_id: tuple(skills) for item_id, skills in state.get("labels", [])}
    done = Catalogued(
        subjects=_catalogs(state),
        labels={item.item_id: labels[item.item_id] for item in context.items if labels.get(item.item_id)},
        unlabelled=tuple(item.item_id for item in context.items if not labels.get(item.item_id)),
        unclustered=sum(not batch["grouped"] for batch in state["clustered"]),
        usage=total(state["usage"]),
    )
    return {"catalogued": done.model_dump(mode="json")}


def _catalogs(state: CatalogState) -> dict[str, SkillCatalog]:
    """The catalog of each subject: the clusters of its last batch."""
    skills_of = {
        cluster["batch"]["subject"]: cluster["skills"]
        for cluster in state["clustered"]
        if cluster["batch"]["last"]
    }
    return {
        subject: SkillCatalog(skills=tuple(Skill(**skill) for skill in skills_of[subject]))
        for subject in sorted(skills_of)
    }


def _fan_out_names(state: CatalogState) -> list[Send] | str:
    chunks = durable.chunks(list(state["plan"]["items"]), _plan_of(state).per_task)
    return [Send("name", ItemsTask(items=chunk, skills=[])) for chunk in chunks] or "gather"


def _after_gather(state: CatalogState) -> list[Send] | str:
    at_most = _plan_of(state).skills_per_subject
    if state["batches"]:
        return [Send("cluster", ClusterTask(batch=batch, at_most=at_most)) for batch in state["batches"]]
    catalogs = _catalogs(state)
    by_subject: dict[str, list[str]] = {}
    for item_id, subject in state["plan"]["items"].items():
        by_subject.setdefault(subject, []).append(item_id)
    sends: list[Send] = []
    # Every subject rounds up to a whole task, so that the sum may pass half of what the pool has threads for.
    size = max(_plan_of(state).per_task, -(-len(state["plan"]["items"]) // (durable.MAX_TASKS // 2)))
    for subject, items in by_subject.items():
        # in the order of the catalog's rows, so that the stage labels asks the same and pays nothing
        skills = sorted(catalogs[subject].names) if subject in catalogs else []
        sends += [
            Send("relabel", ItemsTask(items=chunk, skills=skills)) for chunk in durable.chunks(items, size)
        ]
    return sends


CatalogGraph = CompiledStateGraph[CatalogState, CatalogContext, CatalogState, CatalogState]


def build_catalog(
    checkpointer: BaseCheckpointSaver[Any] | None = None, retry: RetryPolicy = durable.DEFAULT_RETRY
) -> CatalogGraph:
    """The compiled graph. Needs a `CatalogContext` at run time; without a checkpointer an interrupted run
    starts afresh."""
    graph = StateGraph[CatalogState, CatalogContext, CatalogState, CatalogState](CatalogState)
    graph.add_node("name", durable.node("catalog", "name", _name), input_schema=ItemsTask, retry_policy=retry)
    graph.add_node("gather", durable.node("catalog", "gather", _gather), input_schema=CatalogState)
    graph.add_node(
        "cluster", durable.node("catalog", "cluster", _cluster), input_schema=ClusterTask, retry_policy=retry
    )
    graph.add_node(
        "relabel", durable.node("catalog", "relabel", _relabel), input_schema=ItemsTask, retry_policy=retry
    )
    graph.add_node("assemble", durable.node("catalog", "assemble", _assemble), input_schema=CatalogState)
    graph.add_conditional_edges(START, _fan_out_names, ["name", "gather"])
    graph.add_edge("name", "gather")
    graph.add_conditional_edges("gather", _after_gather, ["cluster", "relabel"])
    graph.add_edge("cluster", "gather")
    graph.add_edge("relabel", "assemble")
    graph.add_edge("assemble", END)
    return graph.compile(checkpointer=checkpointer, name="catalog")


def run_catalog(
    graph: CatalogGraph,
    run_id: str,
    plan: CatalogPlan,
    context: CatalogContext,
    keep: Callable[[Catalogued], None] = lambda done: None,
    max_concurrency: int = 8,
) -> Catalogued:
    """Make the catalog, or resume where it was interrupted; call `keep` with the result, then forget the
    thread (the run id).

    `keep` must store the result durably before it returns. Raises `EmptyCatalog` (the thread is forgotten),
    `ItemsChanged`, and what the teacher raises (call again later). At most `max_concurrency` tasks ask the
    teacher at once.
    """
    begin = {"plan": _begin(plan, context)}
    context = replace(context, gate=threading.BoundedSemaphore(max_concurrency))
    changed = ItemsChanged(
        f"run {run_id} was begun with another plan or other questions; use a new run id for them"
    )
    try:
        end: durable.State = durable.finish(graph, begin, context, run_id, "catalogued", changed)
    except EmptyCatalog:
        durable.forget(graph, run_id)
        raise
    done = Catalogued.model_validate(end["catalogued"])
    keep(done)
    durable.forget(graph, run_id)
    return done


def _begin(plan: CatalogPlan, context: CatalogContext) -> JsonObject:
    subjects = {item.item_id: item.subject for item in context.items}
    if not subjects or len(subjects) < len(context.items):
        raise ValueError("give at least one question, and every item id once")
    return {"plan": plan.model_dump(mode="json"), "questions": context.fingerprint, "items": subjects}
