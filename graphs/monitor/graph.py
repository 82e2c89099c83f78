"""The monitor graph: from a batch of student answers to what each of them says about the student's skills.

    START ─► assess (one task per output) ─► diagnose (one per wrong answer) ─► record
                  └─ right, unknown, failed ─────────────────────────────────►

What the steps do with one answer is in `graphs.monitor.diagnose`. No checkpointer: a batch that dies is
processed again and gives the same results, and one transaction afterwards makes them count once (contract 2).

`STOPS_THE_BATCH` leave the graph as they are: pause, then give the whole batch again. Any other exception
belongs to its one output, which becomes `failed` with the error's text (for the dead letters); the others go
on.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, cast

from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import Runtime
from langgraph.types import Command, Send
from typing_extensions import TypedDict

from graphs.monitor.diagnose import (
    STOPS_THE_BATCH,
    Case,
    MonitorContext,
    OutputDiagnosis,
    assess,
    explain,
    failed,
)
from streams.events import StudentOutput

log = logging.getLogger(__name__)
RECURSION_LIMIT = 50


class MonitorState(TypedDict, total=False):
    """`outputs` go in; `results` come out in the same order."""

    outputs: list[StudentOutput]
    numbered: Annotated[list[tuple[int, OutputDiagnosis]], operator.add]
    results: list[OutputDiagnosis]


@dataclass(frozen=True)
class _Task:
    """The work on the output at one place of the batch; a wrong answer comes with its case."""

    at: int
    output: StudentOutput
    case: Case | None = None


def _node(step: Callable[[_Task, MonitorContext], Case | OutputDiagnosis]) -> Callable[..., Command[Any]]:
    """The node of a step: a case goes on to its diagnosis, a result to the record. An error of one output
    becomes its result."""

    def node(task: _Task, runtime: Runtime[MonitorContext]) -> Command[Any]:
        try:
            outcome = step(task, runtime.context)
        except STOPS_THE_BATCH:
            raise
        except Exception as exc:
            log.warning("output %s cannot be diagnosed", task.output.event_id, exc_info=exc)
            outcome = failed(task.output, exc)
        if isinstance(outcome, Case):
            return Command(goto=Send("diagnose", replace(task, case=outcome)))
        return Command(update={"numbered": [(task.at, outcome)]}, goto="record")

    return node


def _assess(task: _Task, context: MonitorContext) -> Case | OutputDiagnosis:
    case = assess(task.output, context)
    return case if case.difficult else explain(case, context)


def _diagnose(task: _Task, context: MonitorContext) -> OutputDiagnosis:
    assert task.case is not None
    return explain(task.case, context)


def _fan_out(state: MonitorState) -> list[Send] | str:
    sends = [Send("assess", _Task(at, output)) for at, output in enumerate(state["outputs"])]
    return sends or "record"


def _record(state: MonitorState, runtime: Runtime[MonitorContext]) -> MonitorState:
    runtime.context.crash("monitor.record")
    numbered = sorted(state.get("numbered", []), key=lambda pair: pair[0])
    return {"results": [result for _, result in numbered]}


MonitorGraph = CompiledStateGraph[MonitorState, MonitorContext, MonitorState, MonitorState]


def build_monitor() -> MonitorGraph:
    """The compiled graph. Needs a `MonitorContext` at run time."""
    # No context_schema: JSON cannot describe a teacher, and `langgraph dev` would fail on trying.
    graph = StateGraph[MonitorState, MonitorContext, MonitorState, MonitorState](MonitorState)
    graph.add_node("assess", _node(_assess), input_schema=_Task, destinations=("diagnose", "record"))
    graph.add_node("diagnose", _node(_diagnose), input_schema=_Task, destinations=("record",))
    graph.add_node("record", _record, defer=True)
    graph.add_conditional_edges(START, _fan_out, ["assess", "record"])
    graph.add_edge("record", END)
    return graph.compile(name="monitor")


def diagnose_outputs(
    graph: MonitorGraph, outputs: Sequence[StudentOutput], context: MonitorContext, max_concurrency: int = 8
) -> list[OutputDiagnosis]:
    """Run one batch; one result per output, in their order. Raises what stops a batch; nothing has changed
    then."""
    config = {"max_concurrency": max_concurrency, "recursion_limit": RECURSION_LIMIT}
    end = graph.invoke({"outputs": list(outputs)}, cast(Any, config), context=context)
    return cast(list[OutputDiagnosis], end["results"])
