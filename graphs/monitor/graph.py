"""The monitor graph: from a batch of student answers to what each of them says about the student's skills.

    START ─► assess (one task per output) ─► diagnose (one per wrong answer) ─► record ─► [decide]
                  └─ right, unknown, failed ─────────────────────────────────►

No checkpointer: a batch that dies is processed again and gives the same results, and one transaction
afterwards makes them count once (contract 2). Student text reaches the teacher as an argument and nothing
else; what comes back is checked against the catalog, the needed skills and the answer before it counts.

1. The question's needed skills are labelled, once per text (`Labeller`).
2. The difficulty filters decide in order of trust whether the answer is right. A right answer needs no
   diagnosis.
3. A wrong answer is diagnosed; the missing skills are constrained to the needed ones, everything else is
   discarded and counted; evidence that the answer does not contain is dropped.
4. Whatever cannot be decided is `abstained` and changes nothing in the profile: nobody has an opinion, no
   label, or a teacher who finds nothing wrong with an answer that a more trusted filter calls wrong.

`TeacherUnavailable` leaves the graph as it is: pause, then give the whole batch again. So do
`TeacherMisconfigured`, `BudgetExceeded` and `UnpricedModel`: they say nothing about the output at hand. Any
other exception belongs to its one output, which becomes `failed` with the error's text (for the dead
letters); the others go on.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, cast

from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import Runtime
from langgraph.types import Command, Send
from typing_extensions import TypedDict

from agent.budget import BudgetExceeded, UnpricedModel, Usage
from agent.catalog import SkillCatalog
from agent.items import Frozen
from agent.profile import constrain
from graphs.filters.assess import NOBODY, Assessor, first_opinion
from graphs.labels import LabelCache, Labeller, MemoryLabels, Needed
from graphs.teacher import Diagnosis, Teacher, TeacherMisconfigured, TeacherUnavailable
from streams.crash import CrashPoint, no_crash
from streams.events import AnswerVerdict, StudentOutput

log = logging.getLogger(__name__)
RECURSION_LIMIT = 50
STOPS_THE_BATCH = (TeacherUnavailable, TeacherMisconfigured, BudgetExceeded, UnpricedModel)


class OutputDiagnosis(Frozen):
    """What is known of one output. `missing` is a subset of `needed`; `error` is set when `verdict` is
    `failed`.

    `discarded` counts missing-skill labels that were thrown away: outside the catalog or the needed skills.
    `decided_by` names the difficulty filter. A question that several outputs share is labelled for one of
    them: that one bears its `usage` and the count of its `unknown_labels`, which the catalog does not have.
    """

    event_id: str
    verdict: Literal["correct", "incorrect", "abstained", "failed"]
    needed: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    evidence: str = ""
    discarded: int = 0
    unknown_labels: int = 0
    decided_by: str = NOBODY
    usage: Usage = Usage()
    error: str = ""


Decide = Callable[[Sequence[OutputDiagnosis]], object]


@dataclass(frozen=True)
class MonitorContext:
    """What the graph works with. `assessors` are asked in this order; `decide` is an optional last node."""

    teacher: Teacher
    catalog: SkillCatalog
    assessors: tuple[Assessor, ...]
    labels: LabelCache = field(default_factory=MemoryLabels)
    decide: Decide | None = None
    crash: CrashPoint = no_crash
    labeller: Labeller = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "labeller", Labeller(self.teacher, self.catalog, self.labels))


class _Numbered(TypedDict):
    at: int
    found: OutputDiagnosis


class MonitorState(TypedDict, total=False):
    """`outputs` go in; `results` come out in the same order; `decision` is what the hook returned."""

    outputs: list[StudentOutput]
    found: Annotated[list[_Numbered], operator.add]
    results: list[OutputDiagnosis]
    decision: object


@dataclass(frozen=True)
class _Case:
    """One output on its way through the graph, with what is known so far."""

    at: int
    output: StudentOutput
    needed: Needed = field(default_factory=lambda: Needed(()))
    diagnosis: Diagnosis | None = None
    decided_by: str = NOBODY

    def result(self, verdict: AnswerVerdict, **more: Any) -> Command[Any]:
        usage = self.needed.usage + (self.diagnosis.usage if self.diagnosis else Usage())
        known = {
            "event_id": self.output.event_id,
            "decided_by": self.decided_by,
            "needed": self.needed.skills,
            "usage": usage,
        }
        return _to_record(
            self.at, OutputDiagnosis(verdict=verdict, unknown_labels=self.needed.discarded, **known, **more)
        )


def _to_record(at: int, found: OutputDiagnosis) -> Command[Any]:
    return Command(update={"found": [_Numbered(at=at, found=found)]}, goto="record")


def _failed(case: _Case, exc: Exception) -> Command[Any]:
    log.warning("output %s cannot be diagnosed", case.output.event_id, exc_info=exc)
    text = f"{type(exc).__name__}: {exc}"
    return _to_record(case.at, OutputDiagnosis(event_id=case.output.event_id, verdict="failed", error=text))


def _guarded(step: Callable[[_Case, MonitorContext], Command[Any]]) -> Callable[..., Command[Any]]:
    """A node of a step: errors of one output become its result, except for those that stop the batch."""

    def node(case: _Case, runtime: Runtime[MonitorContext]) -> Command[Any]:
        try:
            return step(case, runtime.context)
        except STOPS_THE_BATCH:
            raise
        except Exception as exc:
            return _failed(case, exc)

    return node


def _fan_out(state: MonitorState) -> list[Send] | str:
    sends = [Send("assess", _Case(at, output)) for at, output in enumerate(state["outputs"])]
    return sends or "record"


def _assess(case: _Case, context: MonitorContext) -> Command[Any]:
    case = replace(case, needed=context.labeller.needed(case.output.question))
    asked: list[Diagnosis] = []

    def diagnose() -> Diagnosis:
        if not asked:
            asked.append(_ask(case, context))
        return asked[0]

    opinion, decided_by = first_opinion(context.assessors, case.output, diagnose)
    case = replace(case, decided_by=decided_by, diagnosis=asked[0] if asked else None)
    if opinion == "correct":
        return case.result("correct")
    if opinion is None or not case.needed.skills:
        return case.result("abstained")
    return Command(goto=Send("diagnose", case))


def _ask(case: _Case, context: MonitorContext) -> Diagnosis:
    return context.teacher.diagnose(
        case.output.question, case.output.answer, case.needed.skills, context.catalog.names
    )


def _diagnose(case: _Case, context: MonitorContext) -> Command[Any]:
    diagnosis = case.diagnosis or _ask(case, context)
    case = replace(case, diagnosis=diagnosis)
    if diagnosis.verdict != "incorrect":
        return case.result("abstained")
    missing, discarded = constrain(diagnosis.missing, case.needed.skills, context.catalog)
    evidence = diagnosis.evidence if diagnosis.evidence in case.output.answer else ""
    return case.result("incorrect", missing=missing, discarded=discarded, evidence=evidence)


def _record(state: MonitorState, runtime: Runtime[MonitorContext]) -> MonitorState:
    runtime.context.crash("monitor.record")
    numbered = sorted(state.get("found", []), key=lambda one: one["at"])
    return {"results": [one["found"] for one in numbered]}


def _after_record(state: MonitorState, runtime: Runtime[MonitorContext]) -> str:
    return "decide" if runtime.context.decide else END


def _decide(state: MonitorState, runtime: Runtime[MonitorContext]) -> MonitorState:
    decide = runtime.context.decide
    return {"decision": decide(state["results"]) if decide else None}


MonitorGraph = CompiledStateGraph[MonitorState, MonitorContext, MonitorState, MonitorState]


def build_monitor() -> MonitorGraph:
    """The compiled graph. Needs a `MonitorContext` at run time."""
    # No context_schema: JSON cannot describe a teacher, and `langgraph dev` would fail on trying.
    graph = StateGraph[MonitorState, MonitorContext, MonitorState, MonitorState](MonitorState)
    graph.add_node("assess", _guarded(_assess), input_schema=_Case, destinations=("diagnose", "record"))
    graph.add_node("diagnose", _guarded(_diagnose), input_schema=_Case, destinations=("record",))
    graph.add_node("record", _record, defer=True)
    graph.add_node("decide", _decide)
    graph.add_conditional_edges(START, _fan_out, ["assess", "record"])
    graph.add_conditional_edges("record", _after_record, ["decide", END])
    graph.add_edge("decide", END)
    return graph.compile(name="monitor")


def diagnose_outputs(
    graph: MonitorGraph, outputs: Sequence[StudentOutput], context: MonitorContext, max_concurrency: int = 8
) -> list[OutputDiagnosis]:
    """Run one batch; one result per output, in their order. Raises what stops a batch; nothing has changed
    then."""
    config = {"max_concurrency": max_concurrency, "recursion_limit": RECURSION_LIMIT}
    end = graph.invoke({"outputs": list(outputs)}, cast(Any, config), context=context)
    return cast(list[OutputDiagnosis], end["results"])
