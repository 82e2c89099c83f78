"""The teach graph: what the agent does of its own accord once a batch of answers is in the profile.

    START ─► standing ─► decide ─► open ─► END
                │           └─ wait ─────►
                └─ nothing watched yet ──►

1. `standing`: the served version's profile and alarms, as of the newest answer; new alarms are announced.
2. `decide`: the policy, a pure function (`agent.policy`).
3. `open`: the round that it wants becomes a work item for the workers.

No checkpointer: each step may be done again without a second effect, and after a death the next batch looks
at everything anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, cast

from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import Runtime
from typing_extensions import TypedDict

from agent.standing import Seen, Standing

RECURSION_LIMIT = 50


class Agent(Protocol):
    """The agent's eyes and hands for one student. Each call may be repeated."""

    def look(self) -> Seen | None:
        """What is known of the served version, its new alarms announced; None before its first answer."""

    def decide(self, seen: Seen) -> Standing:
        """What to do about it."""

    def open(self, standing: Standing) -> None:
        """Open the round that was decided, unless somebody was first."""


@dataclass(frozen=True)
class TeachContext:
    """On whose behalf the steps are done."""

    agent: Agent


class TeachState(TypedDict, total=False):
    """What the steps leave."""

    seen: Seen
    standing: Standing


def _look(state: TeachState, runtime: Runtime[TeachContext]) -> TeachState:
    seen = runtime.context.agent.look()
    return {} if seen is None else {"seen": seen}


def _decide(state: TeachState, runtime: Runtime[TeachContext]) -> TeachState:
    return {"standing": runtime.context.agent.decide(state["seen"])}


def _open(state: TeachState, runtime: Runtime[TeachContext]) -> TeachState:
    runtime.context.agent.open(state["standing"])
    return {}


def _watched(state: TeachState) -> str:
    return "decide" if "seen" in state else END


def _acts(state: TeachState) -> str:
    return END if state["standing"].decision.kind == "wait" else "open"


TeachGraph = CompiledStateGraph[TeachState, TeachContext, TeachState, TeachState]


def build_teach() -> TeachGraph:
    """The compiled graph. Needs a `TeachContext` at run time."""
    # No context_schema: JSON cannot describe a store, and `langgraph dev` would fail on trying.
    graph = StateGraph[TeachState, TeachContext, TeachState, TeachState](TeachState)
    graph.add_node("standing", _look)
    graph.add_node("decide", _decide)
    graph.add_node("open", _open)
    graph.add_edge(START, "standing")
    graph.add_conditional_edges("standing", _watched, ["decide", END])
    graph.add_conditional_edges("decide", _acts, ["open", END])
    graph.add_edge("open", END)
    return graph.compile(name="teach")


def teach(graph: TeachGraph, agent: Agent) -> Standing | None:
    """One step; what was seen and decided. None before the served version's first answer."""
    config = cast(Any, {"recursion_limit": RECURSION_LIMIT})
    end = graph.invoke({}, config, context=TeachContext(agent))
    return cast("Standing | None", end.get("standing") if end else None)
