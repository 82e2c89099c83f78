"""The curate graph: from a round's plan to the data set it trains on. A killed round goes on at the node
where it died.

    START ─► select ─► synthesize ─► write (fan-out) ─► deduplicate ─► decontaminate
               └─ each branch only when the plan has targets for it ─┘       │
              ┌──────────────────────────────────────────────────────────────┘
              ├─► solve (fan-out) ────────┬─► filter ─► plan ─► END
              └─ without new questions ───┘

Repeats and held-out questions are taken out before the costly solving. State is plain data: item ids, the
teacher's texts and the plan; pool, held-out questions and replay come with the context.

1. `durability="sync"`: a node's result is on disk before the next node starts.
2. The thread is the round id. Giving the same round again resumes it; finished nodes, and finished tasks of a
   fan-out, are not repeated; a task that died is.
3. `keep` is called with the result before the thread is deleted, so a death in between costs nothing but
   calling it again.

Only `TeacherUnavailable` is retried, inside the node, unless the teacher has done so itself; when it lasts,
it leaves the graph and the round can be resumed later.
"""

from __future__ import annotations

import operator
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import RetryPolicy, Send
from typing_extensions import TypedDict

from graphs import durable
from graphs.curate import dataset
from graphs.curate import steps as synthesize
from graphs.curate.duplicates import QuestionIndex
from graphs.curate.plan import CurateContext, Curation, CurationPlan, EmptyPool, NothingCurated, PlanChanged
from graphs.curate.steps import Prompt, Question, Solved, Written
from graphs.durable import DEFAULT_RETRY
from graphs.durable import is_unavailable as is_unavailable


def _add_counts(one: dict[str, int], other: dict[str, int]) -> dict[str, int]:
    return dict(Counter(one) + Counter(other))


class CurateState(TypedDict, total=False):
    """What is checkpointed: plain dictionaries, lists, strings and numbers (strict msgpack)."""

    round_id: str
    plan: dict[str, Any]
    picks: list[dataset.Pick]
    prompts: list[Prompt]
    written: Annotated[list[Written], operator.add]
    questions: list[Question]
    solved: Annotated[list[Solved], operator.add]
    kept: list[Solved]
    dropped: Annotated[dict[str, int], _add_counts]
    curation: dict[str, Any]


class WriteTask(TypedDict):
    """Prompts of one fan-out task."""

    prompts: list[Prompt]


class SolveTask(TypedDict):
    """Questions of one fan-out task."""

    questions: list[Question]
    count: int
    seed: int


def _plan_of(state: CurateState) -> CurationPlan:
    return CurationPlan.model_validate(state["plan"])


def _select(state: CurateState, context: CurateContext) -> CurateState:
    return {"picks": dataset.picks(_plan_of(state), context)}


def _synthesize(state: CurateState, context: CurateContext) -> CurateState:
    return {"prompts": dataset.prompts(_plan_of(state), context)}


def _write(task: WriteTask, context: CurateContext) -> CurateState:
    return {
        "written": [synthesize.write(context.teacher, context.items, prompt) for prompt in task["prompts"]]
    }


def _deduplicate(state: CurateState, context: CurateContext) -> CurateState:
    """Selected questions are compared with each other; new ones also with the pool and with all that was used
    before."""
    rule = _plan_of(state).same_question(_plan_of(state).duplicate)
    dropped: Counter[str] = Counter()
    picked = QuestionIndex(rule)
    picks = [
        one
        for one in state.get("picks", [])
        if _is_new(context.items[one["item_id"]].question, picked, dropped)
    ]
    questions = synthesize.numbered(state.get("written", []))
    known = QuestionIndex(
        rule, [*(item.question for item in context.pool), *context.used_questions] if questions else []
    )
    fresh = [one for one in questions if _is_new(one["text"], known, dropped)]
    return {"picks": picks, "questions": fresh, "dropped": dict(dropped)}


def _is_new(question: str, index: QuestionIndex, dropped: Counter[str]) -> bool:
    same = index.find(question)
    if same is not None:
        dropped[f"duplicate-{same}"] += 1
        return False
    index.add(question)
    return True


def _decontaminate(state: CurateState, context: CurateContext) -> CurateState:
    plan = _plan_of(state)
    held_out = QuestionIndex(plan.same_question(plan.contamination), context.held_out)
    dropped: Counter[str] = Counter()

    def clean(question: str) -> bool:
        same = held_out.find(question)
        if same is not None:
            dropped[f"contaminated-{same}"] += 1
        return same is None

    picks = [one for one in state["picks"] if clean(context.items[one["item_id"]].question)]
    questions = [one for one in state["questions"] if clean(one["text"])]
    return {"picks": picks, "questions": questions, "dropped": dict(dropped)}


def _solve(task: SolveTask, context: CurateContext) -> CurateState:
    return {
        "solved": [
            synthesize.solve(context.teacher, one, task["count"], task["seed"]) for one in task["questions"]
        ]
    }


def _filter(state: CurateState, context: CurateContext) -> CurateState:
    at_least = _plan_of(state).min_agreement
    kept: list[Solved] = []
    dropped: Counter[str] = Counter()
    for one in sorted(state.get("solved", []), key=lambda solved: solved["question"]["at"]):
        agreed = synthesize.agreeing(one["solutions"], at_least, context.canonical)
        if agreed:
            kept.append(Solved(question=one["question"], solutions=agreed, usage=one["usage"]))
        else:
            dropped["inconsistent" if one["solutions"] else "unsolved"] += 1
    return {"kept": kept, "dropped": dict(dropped)}


def _assemble(state: CurateState, context: CurateContext) -> CurateState:
    usage = synthesize.total([one["usage"] for one in (*state.get("written", []), *state.get("solved", []))])
    found = dataset.Found(state["picks"], state.get("kept", []), state.get("dropped", {}), usage)
    return {
        "curation": (
            dataset.curation(state["round_id"], _plan_of(state), found, context).model_dump(mode="json")
        )
    }


def _start(state: CurateState) -> str:
    return "select" if _plan_of(state).wanted("select") else "synthesize"


def _after_select(state: CurateState) -> str:
    return "synthesize" if _plan_of(state).wanted("synthesize") else "deduplicate"


def _fan_out_prompts(state: CurateState) -> list[Send] | str:
    chunks = durable.chunks(state["prompts"], _plan_of(state).per_task)
    return [Send("write", WriteTask(prompts=chunk)) for chunk in chunks] or "deduplicate"


def _fan_out_questions(state: CurateState) -> list[Send] | str:
    plan = _plan_of(state)
    count, seed = plan.synthesis.solutions_per_question, plan.seed
    chunks = durable.chunks(state["questions"], plan.per_task)
    return [Send("solve", SolveTask(questions=chunk, count=count, seed=seed)) for chunk in chunks] or "filter"


CurateGraph = CompiledStateGraph[CurateState, CurateContext, CurateState, CurateState]


def build_curate(
    checkpointer: BaseCheckpointSaver[Any] | None = None, retry: RetryPolicy = DEFAULT_RETRY
) -> CurateGraph:
    """The compiled graph. Needs a `CurateContext` at run time; without a checkpointer an interrupted round
    starts afresh."""
    # No context_schema: JSON cannot describe a teacher, and `langgraph dev` would fail on trying.
    graph = StateGraph[CurateState, CurateContext, CurateState, CurateState](CurateState)
    for name, step in {
        "select": _select,
        "synthesize": _synthesize,
        "deduplicate": _deduplicate,
        "decontaminate": _decontaminate,
    }.items():
        graph.add_node(name, durable.node("curate", name, step), input_schema=CurateState)
    graph.add_node(
        "write", durable.node("curate", "write", _write), input_schema=WriteTask, retry_policy=retry
    )
    graph.add_node(
        "solve", durable.node("curate", "solve", _solve), input_schema=SolveTask, retry_policy=retry
    )
    graph.add_node("filter", durable.node("curate", "filter", _filter), input_schema=CurateState)
    graph.add_node("plan", durable.node("curate", "plan", _assemble), input_schema=CurateState)
    graph.add_conditional_edges(START, _start, ["select", "synthesize"])
    graph.add_conditional_edges("select", _after_select, ["synthesize", "deduplicate"])
    graph.add_conditional_edges("synthesize", _fan_out_prompts, ["write", "deduplicate"])
    graph.add_edge("write", "deduplicate")
    graph.add_edge("deduplicate", "decontaminate")
    graph.add_conditional_edges("decontaminate", _fan_out_questions, ["solve", "filter"])
    graph.add_edge("solve", "filter")
    graph.add_edge("filter", "plan")
    graph.add_edge("plan", END)
    return graph.compile(checkpointer=checkpointer, name="curate")


def run_curation(
    graph: CurateGraph,
    round_id: str,
    plan: CurationPlan,
    context: CurateContext,
    keep: Callable[[Curation], None] = lambda curation: None,
    max_concurrency: int = 8,
) -> Curation:
    """Curate a round, or go on with it where it was interrupted; call `keep` with the result, then forget the
    thread.

    `keep` must store the result durably before it returns, and is called again when the process dies right
    after it. Raises `EmptyPool` and `NothingCurated` (the thread is forgotten), `PlanChanged`,
    `TeacherUnavailable` (call again later). At most `max_concurrency` tasks ask the teacher at once.
    """
    begin: CurateState = {"round_id": round_id, "plan": plan.model_dump(mode="json")}
    changed = PlanChanged(f"round {round_id} was begun with another plan; use a new round id for a new plan")
    context = replace(context, gate=threading.BoundedSemaphore(max_concurrency))
    try:
        end = durable.finish(graph, begin, context, round_id, "curation", changed)
        result = Curation.model_validate(end["curation"])
        if not result.report.accepted:
            raise NothingCurated(round_id, result.report)
        keep(result)
    except (EmptyPool, NothingCurated):
        durable.forget(graph, round_id)
        raise
    durable.forget(graph, round_id)
    return result
