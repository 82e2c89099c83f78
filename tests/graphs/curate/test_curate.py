"""The curate graph: each rule of the way from a plan to a data set."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.types import RetryPolicy, Send

from agent.budget import BudgetExceeded, Usage
from agent.catalog import SkillMap
from agent.decision import SkillTarget
from agent.items import Example, PoolItem, Provenance
from agent.plan import DataPlan, Draw, StrategySettings
from agent.replay import ReplaySettings
from agent.strategies import plan_targets
from graphs.checkpoints import sqlite_checkpoints
from graphs.curate.dataset import example
from graphs.curate.graph import begun_plan, build_curate, is_unavailable, replies_kept, run_curation
from graphs.curate.plan import (
    CurateContext,
    Curation,
    CurationPlan,
    NothingCurated,
    PlanChanged,
    ReplaySource,
)
from graphs.curate.settings import DuplicateSettings
from graphs.filters.grading import MathGrader
from graphs.teacher import Solution, Solutions, TeacherUnavailable
from graphs.testing.scripted import ScriptedTeacher
from streams.crash import Crashed, Raise

FAST = RetryPolicy(
    initial_interval=0.001, max_interval=0.001, max_attempts=3, jitter=False, retry_on=is_unavailable
)
NO_REPLAY = ReplaySettings(share=0.0)


def item(at: int, skill: str = "add", question: str = "") -> PoolItem:
    return PoolItem(
        item_id=f"p{at}",
        question=question or f"pool question {at}",
        solution=f"solution {at}",
        answer="1",
        skills=(skill,),
    )


POOL = [item(at, "add" if at % 2 else "gcd") for at in range(40)]


def target(skill: str = "add", examples: int = 6, strategy: Any = "synthesize") -> SkillTarget:
    return SkillTarget(skill=skill, weight=1.0, examples=examples, strategy=strategy)


def plan(*targets: SkillTarget, used: Any = None, **more: Any) -> CurationPlan:
    """The policy's plan for some targets."""
    seed, settings = more.get("seed", 1), more.get("strategy", StrategySettings())
    pool = SkillMap((one.item_id, one.skills) for one in POOL)
    data = plan_targets(targets or (target(),), pool, seed, used, settings)
    return CurationPlan(**({"seed": seed, "data": data, "replay": NO_REPLAY} | more))


def drawn(*numbers: int, answers: int = 2, **more: Any) -> CurationPlan:
    """A plan that has the solutions of some pool items rewritten."""
    draws = tuple(Draw(f"p{at}", None, f"v{at}", "p") for at in numbers)
    data = DataPlan(draws, answers=answers, rewritten=True)
    return CurationPlan(**({"seed": 1, "data": data, "pairs": 50, "replay": NO_REPLAY} | more))


def curate(given: CurationPlan, teacher: ScriptedTeacher | None = None, **context: Any) -> Curation:
    known: dict[str, Any] = {"pool": POOL, "held_out": []}
    return run_curation(
        build_curate(retry=FAST),
        "r1",
        given,
        CurateContext(teacher or ScriptedTeacher(), **(known | context)),
    )


@pytest.fixture
def saver(tmp_path: Path) -> Iterator[SqliteSaver]:
    with sqlite_checkpoints(tmp_path / "checkpoints.sqlite") as opened:
        yield opened


def strategies(made: Curation) -> list[str]:
    return [one.provenance.strategy for one in made.examples]


def test_selection_takes_pool_items_and_asks_no_teacher() -> None:
    teacher = ScriptedTeacher()
    made = curate(plan(target("gcd", 5, "select")), teacher)
    assert strategies(made) == ["select"] * 5 and made.report.accepted == {"gcd": 5} and not teacher.calls
    first = made.examples[0]
    origin = next(one for one in POOL if one.item_id == first.provenance.source_ids[0])
    assert (first.prompt, first.completion, first.skills) == (origin.question, origin.solution, origin.skills)


def test_selection_prefers_items_that_were_never_used() -> None:
    used = {one.item_id: 1 for one in POOL[:30]}
    made = curate(plan(target("add", 5, "select"), used=used))
    assert not used.keys() & {one.provenance.source_ids[0] for one in made.examples}


def test_synthesis_writes_solves_and_says_where_it_comes_from() -> None:
    made = curate(plan(target(examples=6)))
    assert (
        strategies(made) == ["synthesize"] * 6
        and made.report.accepted == {"add": 6}
        and not made.report.shortfall
    )
    where = made.examples[0].provenance
    assert (where.skill, where.teacher, where.prompt_version, len(where.source_ids)) == (
        "add",
        "scripted",
        "1",
        3,
    )
    assert where.usage == Usage(calls=1) and len({one.prompt for one in made.examples}) == 6
    assert made.report.usage == Usage(calls=5 + 10), "10 questions for 6 at 60 % acceptance, 2 a prompt"


def test_a_round_can_do_both() -> None:
    made = curate(plan(target("gcd", 4, "select"), target("add", 4)))
    assert strategies(made) == ["select"] * 4 + ["synthesize"] * 4 and made.report.accepted == {
        "gcd": 4,
        "add": 4,
    }


@pytest.mark.parametrize(
    ("answers", "kept"),
    [
        (("4", "5", " 4 "), ["s0", "s2"]),
        (("4", "4", "4"), ["s0", "s1", "s2"]),
        (("4", "5", "6"), []),
        (("", "", "4"), []),
        (("4", "4", "5", "5"), []),
        ((), []),
        (("\\frac{1}{2}", "$\\dfrac{1}{2}$", "0.5"), ["s0", "s1"]),
    ],
    ids=[
        "two of three",
        "all",
        "none agree",
        "no answer is no agreement",
        "a tie",
        "teacher abstains",
        "forms",
    ],
)
def test_only_solutions_that_agree_are_kept(answers: tuple[str, ...], kept: list[str]) -> None:
    def solves(question: str, count: int, seed: int) -> list[Solution]:
        spare = [Solution(text="whole", answer="1")] * 2
        return (
            [Solution(text=f"s{at}", answer=answer) for at, answer in enumerate(answers)]
            if question == "odd one"
            else spare
        )

    def writes(skill: str, references: Sequence[PoolItem], count: int, seed: int) -> list[str]:
        return ["odd one", f"other {seed}"]

    made = curate(plan(target(examples=50)), ScriptedTeacher(writes=writes, solves=solves))
    assert [one.completion for one in made.examples if one.prompt == "odd one"] == kept
    reason = "inconsistent" if answers else "unsolved"
    assert made.report.dropped.get(reason, 0) == (0 if kept else 1)


def test_second_solutions_fill_up_what_distinct_questions_lack() -> None:
    made = curate(
        plan(target(examples=4)),
        ScriptedTeacher(writes=lambda skill, references, count, seed: ["one question"]),
    )
    assert [one.completion for one in made.examples] == [f"way {at}: one question" for at in range(3)]
    assert made.report.shortfall == {"add": 1}
    assert sum((one.provenance.usage for one in made.examples), Usage()) == Usage(calls=1)


def test_repeats_are_dropped_before_they_are_solved() -> None:
    texts = ["Pool question 3!", "used question 7", "fresh question 1", "FRESH question 1"]
    teacher = ScriptedTeacher(writes=lambda skill, references, count, seed: texts)
    settings = StrategySettings(questions=4, acceptance=0.5)
    made = curate(plan(target(examples=2), strategy=settings), teacher, used_questions=["Used question 7"])
    assert {one.prompt for one in made.examples} == {"fresh question 1"}
    assert made.report.dropped["duplicate-exact"] == 3 and teacher.count("solve") == 1


def test_no_held_out_question_is_trained_on_in_any_way() -> None:
    held = ["pool question 1", "NEW question 5 of the series, written with care.", "pool question 2"]
    texts = [
        "New question 5 of the series written with care",
        "New question 6 of the series written with care",
    ]
    teacher = ScriptedTeacher(writes=lambda skill, references, count, seed: texts)
    source = ReplaySource(original=POOL[:6])
    given = plan(target("gcd", 20, "select"), target("add", 2), replay=ReplaySettings(share=0.9))
    made = curate(given, teacher, held_out=held, replay=source)
    folded = {one.prompt.casefold() for one in made.examples}
    assert not folded & {
        "pool question 1",
        "pool question 2",
        "new question 5 of the series written with care",
    }
    assert made.report.dropped["contaminated-exact"] == 3 and made.report.dropped["contaminated-replay"] == 2
    assert made.report.shortfall == {"gcd": 1}


def test_near_copies_of_held_out_questions_are_contaminated_but_template_neighbours_are_not() -> None:
    story = (
        "A baker bakes {} loaves in the morning and {} loaves after lunch. "
        "How many loaves does {} bake in a day?"
    )
    texts = [story.format(12, 30, "she"), story.format(13, 30, "he")]
    teacher = ScriptedTeacher(writes=lambda skill, references, count, seed: texts)
    made = curate(plan(target(examples=2)), teacher, held_out=[story.format(12, 30, "he")])
    assert {one.prompt for one in made.examples} == {texts[1]} and made.report.dropped[
        "contaminated-near"
    ] == 2
    both = plan(target(examples=2), duplicates=DuplicateSettings(numbers_matter=False))
    with pytest.raises(NothingCurated, match="contaminated-near 4"):
        curate(both, teacher, held_out=[story.format(12, 30, "he")])


def test_replay_mixes_earlier_targets_with_old_data() -> None:
    earlier = {
        one.example_id: one
        for one in (
            example(
                f"old target {at}",
                "s",
                ("gcd",),
                Provenance(strategy="synthesize", skill="gcd", source_ids=("p1",), usage=Usage(calls=1)),
            )
            for at in range(10)
        )
    }
    source = ReplaySource(reservoir={"gcd": tuple(earlier)}, earlier=earlier, original=POOL)
    made = curate(plan(target(examples=6), replay=ReplaySettings()), replay=source)
    replayed = [one for one in made.examples if one.provenance.strategy == "replay"]
    assert (
        len(replayed) == made.report.replay == 6
        and [one.prompt[:3] for one in replayed] == ["old"] * 3 + ["poo"] * 3
    )
    assert (
        replayed[0].provenance.source_ids == (replayed[0].example_id,)
        and replayed[0].provenance.usage == Usage()
    )


def test_equal_answers_of_different_form_agree_by_the_tasks_own_grading() -> None:
    """The same answer in three forms; as text all three differ."""
    answers = ("0.5", "\\boxed{\\frac12}", "$\\dfrac{1}{2}$")
    ways = [Solution(text=f"The answer is {answer}.", answer=answer) for answer in answers]
    teacher = ScriptedTeacher(
        writes=lambda skill, references, count, seed: ["one question"],
        solves=lambda question, count, seed: ways,
    )
    with MathGrader() as grade:
        made = curate(plan(target(examples=4)), teacher, grade=partial(grade, ""))
    assert [one.completion for one in made.examples] == [way.text for way in ways]
    with pytest.raises(NothingCurated, match="inconsistent"):
        curate(plan(target(examples=4)), teacher)


def test_drawn_solutions_are_rewritten_where_the_answer_stays() -> None:
    class Rewrites(ScriptedTeacher):
        def rewrite(self, one: PoolItem, count: int, seed: int) -> Solutions:
            ways = ["new way", "new way ", one.solution, "wrong"]
            answers = ["\\boxed{1}", "1", "1", "2"]
            texts = zip(ways, answers, strict=True)
            return Solutions(solutions=tuple(Solution(text=t, answer=a) for t, a in texts), usage=self.usage)

    made = curate(drawn(3, 5, answers=3), Rewrites())
    assert [(one.prompt[-1], one.completion) for one in made.examples] in (
        [("3", "new way"), ("3", "solution 3"), ("5", "new way"), ("5", "solution 5")],
        [("5", "new way"), ("5", "solution 5"), ("3", "new way"), ("3", "solution 3")],
    )
    assert made.report.dropped == {"rewritten-answer-changed": 2, "rewritten-repeat": 4}
    where = {one.completion: one.provenance for one in made.examples}
    assert (where["new way"].teacher, where["new way"].part, where["new way"].usage.calls) == (
        "scripted",
        "p",
        1,
    )
    assert where["solution 3"].teacher is None and where["solution 3"].cause == "v3"
    assert made.report.usage == Usage(calls=2) and made.report.accepted == {"p": 4}


def test_no_more_pairs_than_asked_for_and_no_call_for_more() -> None:
    teacher = ScriptedTeacher()
    made = curate(drawn(*range(20), answers=3, pairs=4), teacher)
    assert len(made.examples) == 4 and teacher.count("rewrite") == len({one.prompt for one in made.examples})


def test_nothing_left_is_an_error_with_the_reasons(saver: SqliteSaver) -> None:
    teacher = ScriptedTeacher(solves=lambda question, count, seed: ())
    with pytest.raises(NothingCurated, match=r"no target example is left \(unsolved 10\)"):
        run_curation(build_curate(saver), "r1", plan(), CurateContext(teacher, POOL, []))
    assert list(saver.list(None)) == []


def test_a_teacher_who_is_briefly_away_is_asked_again() -> None:
    teacher = ScriptedTeacher(unavailable={"write": 1, "solve": 2})
    assert curate(plan(per_task=50), teacher) == curate(plan(per_task=50))


def test_a_teacher_who_stays_away_pauses_the_round(saver: SqliteSaver) -> None:
    teacher = ScriptedTeacher(unavailable={"solve": 3})
    graph, context = build_curate(saver, retry=FAST), CurateContext(teacher, POOL, [])
    with pytest.raises(TeacherUnavailable):
        run_curation(graph, "r1", plan(per_task=50), context)
    written = teacher.count("write")
    assert run_curation(graph, "r1", plan(per_task=50), context) == curate(plan(per_task=50))
    assert teacher.count("write") == written and list(saver.list(None)) == []


def test_an_error_of_another_kind_costs_its_call_only_and_is_not_retried() -> None:
    teacher = ScriptedTeacher(broken=frozenset({"add"}))
    made = curate(plan(target(examples=6), target("gcd", 6)), teacher)
    assert made.report.dropped["writing failed"] == 5 == teacher.count("write") / 2
    assert made.report.accepted == {"gcd": 6}


def test_an_error_that_says_nothing_of_the_call_stops_the_round(saver: SqliteSaver) -> None:
    def solves(question: str, count: int, seed: int) -> list[Solution]:
        raise BudgetExceeded("usd_per_day", 1.0, 1.0, 1.0)

    graph = build_curate(saver, retry=FAST)
    with pytest.raises(BudgetExceeded):
        run_curation(graph, "r1", plan(), CurateContext(ScriptedTeacher(solves=solves), POOL, []))
    assert begun_plan(graph, "r1") == plan() and replies_kept(saver, "r1")["write"] == 5


def test_a_round_goes_on_only_with_the_plan_it_began_with(saver: SqliteSaver) -> None:
    graph = build_curate(saver)
    with pytest.raises(Crashed):
        run_curation(
            graph,
            "r1",
            plan(),
            CurateContext(ScriptedTeacher(), POOL, [], crash=Raise("curate.filter.start")),
        )
    with pytest.raises(PlanChanged, match="new round id"):
        run_curation(graph, "r1", plan(seed=2), CurateContext(ScriptedTeacher(), POOL, []))
    assert run_curation(graph, "r1", plan(), CurateContext(ScriptedTeacher(), POOL, [])) == curate(plan())


def test_a_round_begun_by_another_version_begins_again(saver: SqliteSaver) -> None:
    graph, config = build_curate(saver), {"configurable": {"thread_id": "r1"}}
    old = {"round_id": "r1", "plan": {"seed": 1, "targets": []}}
    graph.update_state(config, old, as_node="assemble")  # type: ignore[arg-type]
    assert begun_plan(graph, "r1") is None and list(saver.list(None)) == []


def test_progress_counts_what_an_earlier_life_has_done(saver: SqliteSaver) -> None:
    seen: list[tuple[str, int, int]] = []
    told = {"progress": lambda kind, done, total: seen.append((kind, done, total))}
    graph = build_curate(saver)
    with pytest.raises(Crashed):
        crashing = CurateContext(ScriptedTeacher(), POOL, [], crash=Raise("curate.solve.start", 7), **told)
        run_curation(graph, "r1", plan(), crashing, max_concurrency=1)
    assert seen[:5] == [("write", done, 5) for done in range(1, 6)]
    run_curation(graph, "r1", plan(), CurateContext(ScriptedTeacher(), POOL, [], **told))
    assert max(done for kind, done, _ in seen if kind == "solve") == 10


def test_rounds_do_not_disturb_each_other(saver: SqliteSaver) -> None:
    graph = build_curate(saver)
    with pytest.raises(Crashed):
        run_curation(
            graph, "r1", plan(), CurateContext(ScriptedTeacher(), POOL, [], crash=Raise("curate.solve.end"))
        )
    run_curation(graph, "r2", plan(seed=2), CurateContext(ScriptedTeacher(), POOL, []))
    assert {one.config["configurable"]["thread_id"] for one in saver.list(None)} == {"r1"}


def test_the_same_plan_gives_the_same_data_set_whatever_the_threads_do() -> None:
    def jitter(question: str, count: int, seed: int) -> list[Solution]:
        time.sleep(random.random() / 500)
        return [Solution(text=f"{question} by {seed}", answer="1")] * count

    given = plan(target("gcd", 10, "select"), target("add", 30), per_task=1)
    context = CurateContext(ScriptedTeacher(solves=jitter), POOL, [])
    made = [
        run_curation(build_curate(), "r1", given, context, max_concurrency=threads) for threads in (1, 8, 8)
    ]
    assert made[0] == made[1] == made[2]
    assert (
        run_curation(build_curate(), "r1", given.model_copy(update={"seed": 2}), context).examples
        != made[0].examples
    )


def test_no_more_than_max_concurrency_calls_at_once() -> None:
    lock, now, most = threading.Lock(), [0], [0]

    def watched(question: str, count: int, seed: int) -> list[Solution]:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.002)
        with lock:
            now[0] -= 1
        return [Solution(text="s", answer="1")] * count

    context = CurateContext(ScriptedTeacher(solves=watched), POOL, [])
    run_curation(build_curate(), "r1", plan(target(examples=30), per_task=1), context, max_concurrency=3)
    assert 1 < most[0] <= 3


def test_a_checkpoint_holds_plain_data_only(saver: SqliteSaver) -> None:
    def check(value: object) -> None:
        if isinstance(value, dict):
            assert all(isinstance(key, str) for key in value)
            for part in value.values():
                check(part)
        elif isinstance(value, list | tuple):
            for part in value:
                check(part)
        elif isinstance(value, Send):
            check(value.arg)
        else:
            assert value is None or type(value) in (str, int, float, bool), repr(value)

    seen = []

    def look(made: Curation) -> None:
        for saved in saver.list(None):
            check(saved.checkpoint["channel_values"])
            check([value for _, _, value in saved.pending_writes or ()])
            seen.append(saved)

    given = plan(target("gcd", 4, "select"), target("add", 6), replay=ReplaySettings())
    given = given.model_copy(update={"data": replace(given.data, answers=2, rewritten=True)})
    run_curation(
        build_curate(saver),
        "r1",
        given,
        CurateContext(ScriptedTeacher(), POOL, [], replay=ReplaySource(original=POOL)),
        look,
    )
    assert len(seen) > 5


def test_the_result_is_kept_before_the_thread_is_forgotten(saver: SqliteSaver) -> None:
    kept: list[Example] = []

    def keep(made: Curation) -> None:
        assert list(saver.list(None))
        kept.extend(made.examples)
        if len(kept) == 6:
            raise OSError("disk full")

    graph, context = build_curate(saver), CurateContext(ScriptedTeacher(), POOL, [])
    with pytest.raises(OSError, match="disk full"):
        run_curation(graph, "r1", plan(), context, keep)
    run_curation(graph, "r1", plan(), context, keep)
    assert kept[:6] == kept[6:] and list(saver.list(None)) == []
