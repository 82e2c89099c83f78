"""Graphs for `langgraph dev` (langgraph.json), each of which runs: with `{}` as input on a sample, else on
the input.

The loop's graphs need a context with a teacher, which JSON cannot carry. Here each is the one step of an
outer graph that reads JSON, supplies a scripted teacher for arithmetic, and gives JSON back. Its inside
(`get_graph(xray=True)`) is the graph that the loop runs, in a context of its own: the server's checkpointer
is for the outer graph, since the inner state is not all plain data.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextvars import Context
from datetime import UTC, datetime
from typing import Any

from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from typing_extensions import TypedDict

from agent.catalog import SkillCatalog, SkillMap
from agent.decision import PolicyInput, PolicySettings, PoolState, SkillTarget
from agent.items import JsonObject, PoolItem
from agent.policy import decide
from agent.posterior import ProfileView
from agent.profile import ALL, BucketKey, Counts
from agent.standing import Seen, Standing
from agent.strategies import plan_targets
from graphs.catalog.graph import build_catalog, run_catalog
from graphs.catalog.plan import CatalogContext, CatalogItem, CatalogPlan
from graphs.curate.graph import build_curate, run_curation
from graphs.curate.plan import CurateContext, CurationPlan
from graphs.filters.assess import TeacherVerdict
from graphs.monitor.diagnose import MonitorContext
from graphs.monitor.graph import build_monitor, diagnose_outputs
from graphs.teach.graph import build_teach
from graphs.teach.graph import teach as step
from graphs.teacher import Diagnosis
from graphs.testing import arithmetic
from graphs.testing.scripted import ScriptedTeacher
from streams.events import StudentOutput

SKILLS = ("addition", "subtraction", "multiplication", "division")
QUESTIONS = (
    "What is 12 + 7?",
    "What is 12 - 7?",
    "What is 12 * 7?",
    "Ann has 3 boxes of 4 pears. How many pears does she have?",
    "Ann shares 12 pears equally among 4 friends. How many does each get?",
)
ANSWERS = (
    "The answer is 19.",
    "The answer is 5.",
    "12 and 7 make 19. The answer is 19.",
    "12",
    "The answer is 8.",
)


NEEDED = {"addition": 500, "division": 200}
MISSING = {"addition": 6, "division": 120}


class QuestionsState(TypedDict, total=False):
    """`questions` go in; `result` comes out."""

    questions: list[str]
    result: JsonObject


class OutputsState(TypedDict, total=False):
    """`outputs` go in: {"question": ..., "answer": ...} each; `results` come out in the same order."""

    outputs: list[dict[str, str]]
    results: list[JsonObject]


class ProfileState(TypedDict, total=False):
    """How many of the student's answers `needed` each skill, and in how many it was `missing`, go in;
    `decision` comes out."""

    needed: dict[str, int]
    missing: dict[str, int]
    decision: JsonObject


Studio = CompiledStateGraph[Any, None, Any, Any]


def _outer(name: str, state: Any, run: Any) -> Studio:
    graph: StateGraph[Any, None, Any, Any] = StateGraph(state)
    graph.add_node("run", run)
    graph.add_edge(START, "run")
    graph.add_edge("run", END)
    return graph.compile(name=name)


def _teacher(questions: Iterable[str]) -> ScriptedTeacher:
    def diagnose(question: str, answer: str, needed: Sequence[str]) -> Diagnosis:
        right = arithmetic.solve(question)
        if right is None:
            return Diagnosis(verdict="abstained")
        if arithmetic.last_number(answer) == right:
            return Diagnosis(verdict="correct")
        return Diagnosis(verdict="incorrect", evidence=answer, missing=tuple(needed[:1]))

    return ScriptedTeacher(
        labels={question: arithmetic.operations(question) for question in questions},
        diagnoses=diagnose,
        names=lambda question: next(iter(arithmetic.operations(question)), "other questions"),
    )


def catalog() -> Studio:
    """From `questions` to a skill catalog and labels."""
    inner = build_catalog()

    def run(state: QuestionsState) -> QuestionsState:
        questions = list(dict.fromkeys(state.get("questions") or QUESTIONS))
        items = [CatalogItem(item_id=str(at), question=text) for at, text in enumerate(questions)]
        context = CatalogContext(_teacher(questions), items)
        done = Context().run(run_catalog, inner, "studio", CatalogPlan(), context)
        return {"result": done.model_dump(mode="json")}

    return _outer("catalog", QuestionsState, run)


def monitor() -> Studio:
    """From `outputs` (a question and an answer each) to diagnoses."""
    inner = build_monitor()

    def run(state: OutputsState) -> OutputsState:
        pairs = state.get("outputs") or [
            {"question": question, "answer": answer}
            for question, answer in zip(QUESTIONS, ANSWERS, strict=True)
        ]
        base = {"occurred_at": "2026-01-01T00:00:00Z", "student": "studio", "student_version": 1}
        outputs = [
            StudentOutput.model_validate({"event_id": str(at), **base, **pair})
            for at, pair in enumerate(pairs)
        ]
        context = MonitorContext(
            _teacher(output.question for output in outputs),
            SkillCatalog.of(*((skill, "") for skill in SKILLS)),
            (TeacherVerdict(),),
        )
        results = Context().run(diagnose_outputs, inner, outputs, context)
        return {"results": [result.model_dump(mode="json") for result in results]}

    return _outer("monitor", OutputsState, run)


def curate() -> Studio:
    """From `questions` to a data set: half selected, half written."""
    inner = build_curate()

    def run(state: QuestionsState) -> QuestionsState:
        questions = list(dict.fromkeys(state.get("questions") or QUESTIONS))
        pool = [_pool_item(at, text) for at, text in enumerate(questions)]
        skills = SkillMap((item.item_id, item.skills) for item in pool)
        targets = [
            SkillTarget(skill=skill, weight=0.5, examples=4, strategy=how)
            for skill, how in zip(list(skills.sizes)[:2], ("select", "synthesize"), strict=False)
        ]
        plan = CurationPlan(seed=0, data=plan_targets(targets, skills, 0))
        context = CurateContext(_teacher(questions), pool, [])
        done = Context().run(run_curation, inner, "studio", plan, context)
        return {"result": done.model_dump(mode="json")}

    return _outer("curate", QuestionsState, run)


def _pool_item(at: int, question: str) -> PoolItem:
    answer = str(arithmetic.solve(question))
    skills = arithmetic.operations(question) or ("other questions",)
    solution = f"The answer is {answer}."
    return PoolItem(item_id=str(at), question=question, solution=solution, answer=answer, skills=skills)


class _Sample:
    """An agent that has watched what `needed` and `missing` say, and opens nothing."""

    def __init__(self, needed: Mapping[str, int], missing: Mapping[str, int]) -> None:
        table = {
            BucketKey("studio", 1, skill, 0): Counts(count, missing.get(skill, 0))
            for skill, count in needed.items()
        }
        answers = sum(needed.values())
        table[BucketKey("studio", 1, ALL, 0)] = Counts(answers, sum(missing.values()))
        profile = ProfileView(table).read("studio", 1, as_of_bucket=0)
        self._seen = Seen(1, datetime(2026, 1, 1, tzinfo=UTC), profile, {}, (), answers)

    def look(self) -> Seen:
        return self._seen

    def decide(self, seen: Seen) -> Standing:
        pools = {estimate.skill: PoolState(available=1000) for estimate in seen.profile.skills}
        policy = PolicyInput(seen.profile, seen.profile.answers, seen.answers, pools)
        return Standing.of(seen, decide(policy, PolicySettings()))

    def open(self, standing: Standing) -> None:
        pass


def teach() -> Studio:
    """From how often each skill was `needed` and `missing` to the policy's decision."""
    inner = build_teach()

    def run(state: ProfileState) -> ProfileState:
        agent = _Sample(state.get("needed") or NEEDED, state.get("missing") or MISSING)
        standing = Context().run(step, inner, agent)
        assert standing is not None
        return {"decision": standing.decision.model_dump(mode="json")}

    return _outer("teach", ProfileState, run)
