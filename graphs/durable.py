"""What the durable graphs (catalog, curate) share: gated nodes with crash points, fan-out in chunks, and
resuming where a run died."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar, cast

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import Runtime
from langgraph.types import Command, RetryPolicy

from graphs.teacher import TeacherUnavailable
from streams.crash import CrashPoint

RECURSION_LIMIT = 50
# LangGraph saves a finished task's result through the same thread pool that runs the tasks: in a small pool
# the result waits behind every queued task, and a crash loses it. So all tasks of a fan-out get a thread, and
# a gate lets few work at once.
MAX_TASKS = 200
POOL_THREADS = MAX_TASKS + 16

AnyGraph = CompiledStateGraph[Any, Any, Any, Any]
State = Mapping[str, Any]


class Context(Protocol):
    """What a durable graph's context has besides its own things."""

    @property
    def crash(self) -> CrashPoint: ...

    @property
    def gate(self) -> AbstractContextManager[object]: ...


C = TypeVar("C", bound=Context)
S = TypeVar("S")
Item = TypeVar("Item")


def node(graph: str, name: str, step: Callable[[Any, C], S]) -> Callable[..., S]:
    """A node of a step, with a crash point before its work and one after it, when nothing of it is saved
    yet."""

    def run(state: Any, runtime: Runtime[Any]) -> S:
        with runtime.context.gate:
            runtime.context.crash(f"{graph}.{name}.start")
            update = step(state, runtime.context)
            runtime.context.crash(f"{graph}.{name}.end")
            return update

    return run


def chunks(items: list[Item], size: int) -> list[list[Item]]:
    """`items` in runs of `size`, or longer ones where there would be more than `MAX_TASKS`."""
    size = max(size, -(-len(items) // MAX_TASKS))
    return [items[at : at + size] for at in range(0, len(items), size)]


def is_unavailable(error: Exception) -> bool:
    """The only reason to ask a teacher again: LangGraph's default would also repeat a refused request (400,
    401).

    A teacher that retries by itself is not asked again here: one layer retries.
    """
    return isinstance(error, TeacherUnavailable) and not error.exhausted


DEFAULT_RETRY = RetryPolicy(initial_interval=1.0, max_interval=60.0, max_attempts=6, retry_on=is_unavailable)


def configuration(thread_id: str) -> RunnableConfig:
    """The run configuration of one durable run: its thread is its id."""
    thread = {"thread_id": thread_id}
    return RunnableConfig(configurable=thread, max_concurrency=POOL_THREADS, recursion_limit=RECURSION_LIMIT)


def saver_of(graph: AnyGraph) -> BaseCheckpointSaver[Any] | None:
    """The graph's checkpointer, where it has one."""
    return graph.checkpointer if isinstance(graph.checkpointer, BaseCheckpointSaver) else None


def finish(
    graph: AnyGraph, begin: State, context: Context, thread_id: str, done: str, changed: Exception
) -> State:
    """The final state of a thread, running only what is left of it. `done` is the key of the result.

    Raises `changed` when the thread was begun with another `plan` than that of `begin`.
    """
    config = configuration(thread_id)
    if saver_of(graph) is None:
        return cast(State, graph.invoke(begin, config, context=context))
    saved = graph.get_state(config)
    known = saved.values.get("plan")
    if known is not None and known != begin["plan"]:
        raise changed
    if done in saved.values:
        return cast(State, saved.values)
    start = None if known is not None else begin
    return cast(State, graph.invoke(start, config, context=context, durability="sync"))


def resume(graph: AnyGraph, answer: Any, context: Context, thread_id: str) -> State:
    """The final state of a thread that was interrupted, where `answer` is what it asked for."""
    command: Command[Any] = Command(resume=answer)
    return cast(State, graph.invoke(command, configuration(thread_id), context=context, durability="sync"))


def forget(graph: AnyGraph, thread_id: str) -> None:
    """Delete the thread's checkpoints."""
    saver = saver_of(graph)
    if saver:
        saver.delete_thread(thread_id)
