"""The curate graph: from a data plan to the data set it comes to, for a round of the loop and for files. A
killed run resumes at the node where it died.

    START ─► write (fan-out) ─► sieve ─► rewrite (fan-out) ─► filter ─► assemble ─► approve
      └── without requests ───────┘ └──► solve (fan-out) ───────┘

Repeats and held-out questions are taken out before the costly solving and rewriting. State is plain data:
item ids, the teacher's texts and the plan; pool, held-out questions and replay come with the context.

1. `durability="sync"`: a node's result is on disk before the next node starts.
2. The thread is the round id. Giving the same round again resumes it; finished nodes, and finished tasks of a
   fan-out, are not repeated; a task that died is.
3. Where a person has to approve the data, the graph is interrupted at `approve`, and resumed with the
   decision: by any later call, of any process.
4. `keep` is called with the result before the thread is deleted, so a death in between costs nothing but
   calling it again.

Only `TeacherUnavailable` is retried, inside the node, unless the teacher has done so itself; when it lasts,
it leaves the graph and the round can be resumed later.
"""

from __future__ import annotations

import logging
import operator
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, cast

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import RetryPolicy, Send, interrupt
from pydantic import ValidationError
from typing_extensions import TypedDict

from agent.items import JsonObject
from graphs import durable
from graphs.counts import CallCounts
from graphs.curate import dataset
from graphs.curate.dataset import Question
from graphs.curate.plan import (
    Approval,
    AwaitingApproval,
    CurateContext,
    Curation,
    CurationPlan,
    DataRejected,
    NothingCurated,
    PlanChanged,
)
from graphs.curate.steps import Kind, Reply, TeacherCall, agreeing, ask, rewritten, solutions, total
from graphs.durable import DEFAULT_RETRY
from graphs.durable import is_unavailable as is_unavailable

log = logging.getLogger(__name__)
REPLIES: Mapping[Kind, str] = {"write": "written", "rewrite": "rewritten", "solve": "solved"}
"""Where the state keeps the replies to each kind of call."""


def _add_counts(counts: dict[str, int], more: dict[str, int]) -> dict[str, int]:
    return dict(Counter(counts) + Counter(more))


Replies = Annotated[list[Reply], operator.add]


class CurateState(TypedDict, total=False):
    """What is checkpointed: plain dictionaries, lists, strings and numbers (strict msgpack)."""

    round_id: str
    plan: JsonObject
    written: Replies
    items: list[str]
    questions: list[Question]
    rewritten: Replies
    solved: Replies
    kept_rewrites: list[Reply]
    kept_solutions: list[Reply]
    dropped: Annotated[dict[str, int], _add_counts]
    curation: JsonObject
    approval: JsonObject


class CallsTask(TypedDict):
    """The calls of one fan-out task, of `total` in all."""

    calls: list[TeacherCall]
    total: int


def _plan_of(state: CurateState) -> CurationPlan:
    return CurationPlan.model_validate(state["plan"])


def _teach(kind: Kind, task: CallsTask, context: CurateContext) -> dict[str, list[Reply]]:
    replies = []
    for call in task["calls"]:
        replies.append(ask(kind, context.teacher, context.items, call))
        context.tally.add(kind, task["total"])
    return {REPLIES[kind]: replies}


def _sieve(state: CurateState, context: CurateContext) -> CurateState:
    dropped: Counter[str] = Counter()
    items, questions = dataset.sift(_plan_of(state), state.get("written", []), context, dropped)
    return {"items": items, "questions": questions, "dropped": dict(dropped)}


def _filter(state: CurateState, context: CurateContext) -> CurateState:
    """Rewritten solutions that end in the right answer, and new ones that agree on theirs."""
    at_least = _plan_of(state).strategy.min_agreement
    dropped: Counter[str] = Counter()
    rewrites, solved = [], []
    for reply in sorted(state.get("rewritten", []), key=lambda reply: reply["at"]):
        texts = rewritten(context.items[reply["text"]], reply, context.grade, dropped)
        rewrites.append(Reply(**(reply | {"texts": texts, "answers": []})))
    for reply in sorted(state.get("solved", []), key=lambda reply: reply["at"]):
        texts = agreeing(solutions(reply), at_least, context.grade)
        dropped["inconsistent" if reply["texts"] else "unsolved"] += not texts
        solved.append(Reply(**(reply | {"texts": texts, "answers": []})))
    return {"kept_rewrites": rewrites, "kept_solutions": solved, "dropped": dict(dropped)}


def _assemble(state: CurateState, context: CurateContext) -> CurateState:
    replies = cast(Mapping[str, list[Reply]], state)
    usages = [reply["usage"] for kept in REPLIES.values() for reply in replies.get(kept, [])]
    gathered = dataset.Gathered(
        items=state["items"],
        rewritten={reply["text"]: reply for reply in state["kept_rewrites"]},
        questions=state["questions"],
        solved=state["kept_solutions"],
        dropped=state.get("dropped", {}),
        usage=total(usages),
    )
    made = dataset.curation(state["round_id"], _plan_of(state), gathered, context)
    return {"curation": made.model_dump(mode="json")}


def _approve(state: CurateState, context: CurateContext) -> CurateState:
    """Stop until a person has decided, where one has to: nothing is trained on before. An empty data set
    needs nobody."""
    empty = not Curation.model_validate(state["curation"]).report.accepted
    if context.approve is None or empty:
        return {"approval": Approval(approved=True).model_dump()}
    return {"approval": interrupt("the data waits for a person's approval")}


def _fan_out(plan: CurationPlan, calls: dict[Kind, list[TeacherCall]]) -> list[Send]:
    """Tasks of `per_task` calls, or more where all kinds together would be too many tasks."""
    size = max(plan.per_task, -(-sum(map(len, calls.values())) // durable.MAX_TASKS))
    return [
        Send(kind, CallsTask(calls=chunk, total=len(asked)))
        for kind, asked in calls.items()
        for chunk in durable.chunks(asked, size)
    ]


def _start(state: CurateState) -> list[Send] | str:
    plan = _plan_of(state)
    return _fan_out(plan, {"write": dataset.write_calls(plan)}) or "sieve"


def _after_sieve(state: CurateState) -> list[Send] | str:
    plan = _plan_of(state)
    calls: dict[Kind, list[TeacherCall]] = {
        "rewrite": dataset.rewrite_calls(plan, state["items"]),
        "solve": dataset.solve_calls(plan, state["questions"]),
    }
    return _fan_out(plan, calls) or "filter"


CurateGraph = CompiledStateGraph[CurateState, CurateContext, CurateState, CurateState]


def build_curate(
    checkpointer: BaseCheckpointSaver[Any] | None = None, retry: RetryPolicy = DEFAULT_RETRY
) -> CurateGraph:
    """The compiled graph. Needs a `CurateContext` at run time; without a checkpointer an interrupted round
    starts afresh."""
    # No context_schema: JSON cannot describe a teacher, and `langgraph dev` would fail on trying.
    graph = StateGraph[CurateState, CurateContext, CurateState, CurateState](CurateState)
    for name, step in {
        "sieve": _sieve,
        "filter": _filter,
        "assemble": _assemble,
        "approve": _approve,
    }.items():
        graph.add_node(name, durable.node("curate", name, step), input_schema=CurateState)
    for kind in REPLIES:
        work = durable.node("curate", kind, partial(_teach, kind))
        graph.add_node(kind, work, input_schema=CallsTask, retry_policy=retry)
    graph.add_conditional_edges(START, _start, ["write", "sieve"])
    graph.add_edge("write", "sieve")
    graph.add_conditional_edges("sieve", _after_sieve, ["rewrite", "solve", "filter"])
    graph.add_edge("rewrite", "filter")
    graph.add_edge("solve", "filter")
    graph.add_edge("filter", "assemble")
    graph.add_edge("assemble", "approve")
    graph.add_edge("approve", END)
    return graph.compile(checkpointer=checkpointer, name="curate")


def begun_plan(graph: CurateGraph, round_id: str) -> CurationPlan | None:
    """The plan that an interrupted round began with. One of another version of this program cannot be read:
    the round is forgotten and begins again (what the teacher was paid for is in its cache)."""
    saved = graph.get_state(cast(Any, durable.configuration(round_id))).values.get("plan")
    try:
        return None if saved is None else CurationPlan.model_validate(saved)
    except ValidationError:
        log.warning("round %s was begun by another version and begins again", round_id)
        durable.forget(graph, round_id)
        return None


def replies_kept(checkpointer: BaseCheckpointSaver[Any], round_id: str) -> Counter[str]:
    """How many calls of each kind an interrupted round has behind it."""
    saved = checkpointer.get_tuple(cast(Any, durable.configuration(round_id)))
    if saved is None:
        return Counter()
    values = saved.checkpoint["channel_values"]
    done = Counter({channel: len(values.get(channel, [])) for channel in REPLIES.values()})
    for _, channel, value in saved.pending_writes or ():
        if channel in done:
            done[channel] += len(value)
    return Counter({kind: done[channel] for kind, channel in REPLIES.items()})


def run_curation(
    graph: CurateGraph,
    round_id: str,
    plan: CurationPlan,
    context: CurateContext,
    keep: Callable[[Curation], None] = lambda curation: None,
    max_concurrency: int = 8,
) -> Curation:
    """Curate a round, or resume it where it was interrupted; call `keep` with the result, then forget the
    thread.

    `keep` must store the result durably before it returns, and is called again when the process dies right
    after it. Raises `NothingCurated` and `DataRejected` (the thread is forgotten), `PlanChanged`,
    `AwaitingApproval` and `TeacherUnavailable` (call again later). At most `max_concurrency` tasks ask the
    teacher at once.
    """
    begin: CurateState = {"round_id": round_id, "plan": plan.model_dump(mode="json")}
    changed = PlanChanged(f"round {round_id} was begun with another plan; use a new round id for a new plan")
    saver = durable.saver_of(graph)
    tally = CallCounts(context.progress, replies_kept(saver, round_id) if saver else None)
    context = replace(context, gate=threading.BoundedSemaphore(max_concurrency), tally=tally)
    end = durable.finish(graph, begin, context, round_id, "approval", changed)
    result = Curation.model_validate(end["curation"])
    if "approval" not in end:
        decided = context.approve(result) if context.approve else Approval(approved=True)
        if decided is None:
            raise AwaitingApproval(f"round {round_id}: its data waits for a person (`skillloop approvals`)")
        end = durable.resume(graph, decided.model_dump(), context, round_id)
    if not result.report.accepted:
        durable.forget(graph, round_id)
        raise NothingCurated(round_id, result.report)
    approval = Approval.model_validate(end["approval"])
    if not approval.approved:
        durable.forget(graph, round_id)
        raise DataRejected(approval.reason)
    keep(result)
    durable.forget(graph, round_id)
    return result
