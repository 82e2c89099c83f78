"""What people read of a round in the tracking server."""

from __future__ import annotations

from collections.abc import Callable

from training.evaluate import evaluate
from training.gate import judge
from training.report import RoundStory, Sample, choose_samples, description, page


def sample(was: bool | float | None, now: bool | float | None, text: str = "x") -> Sample:
    return Sample(("add",), text, "1", f"before {text}", f"after {text}", was, now)


def story(make_items: Callable) -> RoundStory:
    items = make_items("skill:add", ("add",), 40)
    before = evaluate(lambda prompts: list(prompts), lambda item, answer: answer.endswith("0"), items)
    after = evaluate(lambda prompts: list(prompts), lambda item, answer: not answer.endswith("1"), items)
    verdict = judge(before, after, ("add",))
    return RoundStory("r001", ("add",), ("add is missed | often",), (("adapter", "adapter-1"),), verdict)


def test_the_description_says_why_what_and_how_it_was_judged(make_items: Callable) -> None:
    told = story(make_items)
    text = description(told)
    assert text.startswith("Round r001 taught add; the gate is open.")
    assert "- add is missed | often" in text and "- adapter: `adapter-1`" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows[0].startswith("| what | kind |") and any("| targets | 40 | 10.0% | 90.0%" in r for r in rows)
    assert len({row.count("|") for row in rows}) == 1


def test_the_page_shows_the_whole_table_and_runs_nothing_of_a_student(make_items: Callable) -> None:
    told = story(make_items)
    text = page(told, [sample(False, True, "<script>alert(1)</script>")])
    assert "<script>" not in text and text.count("before &lt;script&gt;") == 1
    assert text.count("<tr>") == 1 + 1 + 1 + len(told.verdict.table) + 1 + 1


def test_a_few_samples_of_each_kind_are_chosen() -> None:
    kinds = [(False, True), (True, False), (False, False), (True, True), (0.2, 0.4), (None, True)]
    chosen = choose_samples([sample(*kind) for kind in kinds for _ in range(5)], of_each=3)
    assert [(each.was, each.now) for each in chosen] == [
        *[(False, True)] * 3,
        *[(True, False)] * 3,
        *[(False, False)] * 3,
        *[(True, True)] * 3,
    ]
