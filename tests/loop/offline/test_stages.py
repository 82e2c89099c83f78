from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.budget import LedgerEntry, Usage
from agent.strategies import STRATEGIES
from loop.offline import pipeline
from loop.offline.bench import STUDENT, Bench
from loop.offline.config import load_stat
from loop.offline.estimate import estimate
from loop.offline.folder import RunBusy
from loop.offline.opening import open_bench
from loop.offline.records import AssessedRow, DatasetRow
from streams.files import DataError, read_objects
from streams.state.ledger import paid

Files = Callable[..., Path]
Calls = Callable[[], list[tuple[str, str]]]
Ask = Callable[[int], str]
RESULTS = ("catalog", "labels", "answers", "assessed", "diagnoses", "profile", "dataset")


def run(
    config: Path,
    strategy: Any = None,
    until: str = "dataset",
    before: Callable[[Bench], object] = lambda bench: None,
) -> list[str]:
    """Run the stages; the names of those that were done, not kept."""
    done: list[str] = []
    with open_bench(load_stat(config), config.parent / "run", strategy) as bench:
        before(bench)
        pipeline.run_stages(
            bench, until, lambda event, stage, manifest: done.append(stage) if event == "done" else None
        )
    return done


def rows(config: Path, stage: str) -> list[dict[str, Any]]:
    return list(read_objects(config.parent / "run" / f"{stage}.jsonl"))


def figures(config: Path, stage: str) -> dict[str, float]:
    found: dict[str, float] = json.loads((config.parent / "run" / "manifests" / f"{stage}.json").read_text())[
        "figures"
    ]
    return found


def test_every_stage_leaves_its_result(make_files: Files, calls: Calls) -> None:
    config = make_files()
    assert run(config) == list(RESULTS)
    assert {row["skill"] for row in rows(config, "catalog")} == {"sum", "gcd", "choose", "permute"}
    assert next(row["subjects"] for row in rows(config, "catalog") if row["skill"] == "choose") == [
        "counting_and_probability"
    ]
    labels = {row["question_id"]: row for row in rows(config, "labels")}
    assert (
        labels["t5"]["source"] == "teacher"
        and labels["t5"]["skills"] == ["choose", "permute"]
        and labels["t6"]["source"] == "given"
    )
    verdicts = Counter(row["verdict"] for row in rows(config, "assessed"))
    assert verdicts == {"correct": 4, "incorrect": 8}
    assert all(
        row["missing"] and set(row["missing"]) <= set(row["needed"]) for row in rows(config, "diagnoses")
    )
    profile = rows(config, "profile")
    assert sum(row["missing"] for row in profile) == sum(
        len(row["missing"]) for row in rows(config, "diagnoses")
    )
    assert all(row["missing"] <= row["needed"] and 0 < row["pool"] for row in profile if row["missing"])
    assert {"label", "diagnose", "rewrite"} == {method for method, _ in calls()}


def test_the_data_set_has_messages_provenance_and_rewritten_answers(make_files: Files) -> None:
    config = make_files()
    run(config)
    data = [DatasetRow.model_validate(row) for row in rows(config, "dataset")]
    assert 0 < len(data) <= 60 and len({row.id for row in data}) == len(data)
    for row in data:
        assert [turn.role for turn in row.messages] == ["user", "assistant"]
        assert (
            row.origin.strategy == "stat-sel"
            and row.origin.skill in row.skills
            and row.origin.cause
            and row.origin.cause.startswith("v")
        )
        assert (row.origin.kind, row.origin.teacher, row.origin.prompt_version) == (
            "rewritten",
            "scripted",
            "1",
        )
        assert row.messages[1].content.startswith("way ") and len(row.origin.source_ids) == 1
    assert sum(row.origin.usage.calls for row in data) == figures(config, "dataset")["unique questions"]
    card = (config.parent / "run" / "dataset.card.md").read_text()
    assert card.startswith("---\n") and "data_files: dataset.jsonl" in card and "k_sel | 5" in card


@pytest.mark.parametrize("strategy", sorted(set(STRATEGIES) - {"stat-sel"}))
def test_every_strategy_makes_a_clean_data_set_beside_the_configured_one(
    make_files: Files, ask: Ask, strategy: str
) -> None:
    config = make_files()
    run(config, until="profile")
    assert run(config, strategy) == [f"dataset-{strategy}"]
    data = rows(config, f"dataset-{strategy}")
    texts = [row["messages"][0]["content"] for row in data]
    assert data and not any("word for word" in text for text in texts)
    assert not {ask(1), ask(1).upper()} <= set(texts)
    kinds = {row["origin"]["kind"] for row in data}
    assert kinds <= (
        {"synthesized"}
        if strategy.endswith("-syn")
        else {"original"}
        if strategy == "original"
        else {"rewritten", "original"}
    )
    assert {row["origin"]["strategy"] for row in data} == {strategy}
    assert all(row["origin"]["source_ids"] for row in data)


def test_repeats_and_contaminated_questions_are_counted(make_files: Files) -> None:
    config = make_files()
    run(config, "augment")
    found = figures(config, "dataset-augment")
    assert found["dropped contaminated-exact"] == 1 and found["dropped duplicate-exact"] == 1


def test_a_finished_run_does_nothing_and_asks_nothing(make_files: Files, calls: Calls) -> None:
    config = make_files()
    run(config)
    asked, data = len(calls()), (config.parent / "run" / "dataset.jsonl").read_bytes()
    assert run(config) == [] and len(calls()) == asked
    assert run(config, before=lambda bench: pipeline.forget_from(bench, "catalog")) == list(RESULTS)
    assert len(calls()) == asked and (config.parent / "run" / "dataset.jsonl").read_bytes() == data


def test_a_change_redoes_only_what_depends_on_it(make_files: Files, calls: Calls) -> None:
    config = make_files()
    run(config)
    config.write_text(config.read_text() + "k_sel = 4\n")
    assert run(config) == ["dataset"]
    said = config.parent / "answers.jsonl"
    said.write_text(said.read_text().replace("no idea", "no clue", 1))
    before = Counter(method for method, _ in calls())
    assert run(config) == ["answers", "assessed", "diagnoses", "profile", "dataset"]
    asked = Counter(method for method, _ in calls()) - before
    assert asked["diagnose"] == 1 and not asked["label"]


def test_a_damaged_result_is_made_again(make_files: Files) -> None:
    config = make_files()
    run(config)
    path = config.parent / "run" / "diagnoses.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    assert run(config) == ["diagnoses"] and path.read_bytes() == whole


def test_answers_are_brought_in_any_of_the_documented_forms(make_files: Files) -> None:
    config = make_files()
    asked = [row["question"] for row in read_objects(config.parent / "validation.jsonl")]
    lines: list[dict[str, Any]] = [
        {"question": asked[0], "response": "a"},
        {"question": asked[0], "response": "b"},
    ]
    lines += [
        {"question_id": "v101", "responses": ["c", "d", "e"]},
        {"question_id": "of another set", "response": "f"},
    ]
    (config.parent / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run(config, until="answers")
    assert [(row["question_id"], row["sample"], row["response"]) for row in rows(config, "answers")] == [
        ("v100", 0, "a"), ("v100", 1, "b"), ("v101", 0, "c"), ("v101", 1, "d"), ("v101", 2, "e"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "line 1: not JSON"),
        ('{"question_id": "v100"}', "needs response"),
        ('{"response": "x"}', "needs question_id"),
        ("[]", "list"),
    ],
)
def test_a_wrong_line_of_answers_is_named(make_files: Files, line: str, told: str) -> None:
    config = make_files()
    (config.parent / "answers.jsonl").write_text(line + "\n")
    with pytest.raises(DataError, match=told):
        run(config, until="answers")


def test_consistency_decides_without_right_answers(make_files: Files) -> None:
    config = make_files()
    config.write_text(config.read_text().replace('grade = "text"', 'grade = "text"\norder = ["consistency"]'))
    lines = [
        {"question_id": "v100", "responses": ["\\boxed{1}", "\\boxed{1}"]},
        {"question_id": "v101", "responses": ["\\boxed{1}", "2"]},
    ]
    (config.parent / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run(config, until="assessed")
    assert [(row["verdict"], row["decided_by"]) for row in rows(config, "assessed")] == [
        ("correct", "consistency"),
        ("incorrect", "consistency"),
    ]


def test_an_answer_that_breaks_a_grader_is_a_row_with_its_error_and_the_others_are_judged(
    make_files: Files,
) -> None:
    def grade(question: str, gold: str, response: str) -> bool:
        return 1 / (gold != "110") > 1  # v103 has the answer 110

    with open_bench(load_stat(make_files()), make_files().parent / "run") as opened:
        bench = dataclasses.replace(opened, grade=grade)
        [*_, assessed] = pipeline.run_stages(bench, "assessed")
        broken = [row for row in bench.folder.rows("assessed", AssessedRow) if row.error]
    assert [(row.question_id, row.verdict) for row in broken] == [("v103", "abstained")]
    assert assessed.figures["incorrect"] == 11 and "1 answers could not be judged" in assessed.notes[0]


def test_the_teachers_verdict_is_not_paid_twice(make_files: Files, calls: Calls) -> None:
    config = make_files()
    config.write_text(config.read_text().replace('grade = "text"', 'order = ["teacher"]'))
    run(config, until="diagnoses")
    assert Counter(method for method, _ in calls())["diagnose"] == 12 == len(rows(config, "diagnoses"))


def test_the_estimate_leaves_out_what_the_teacher_has_said(make_files: Files) -> None:
    config = make_files()
    run(config, until="labels")
    with open_bench(load_stat(config), config.parent / "run") as bench:
        pipeline.forget_from(bench, "labels")
        assert [line.kind for line in estimate(bench, "diagnoses", frozenset({"catalog"}))] == ["diagnose"]
        assert bench.replies.count("label") == 12 + 3


def test_the_teacher_makes_the_catalog_and_its_labels_are_kept(make_files: Files, calls: Calls) -> None:
    config = make_files()
    config.write_text(config.read_text() + '[catalog]\nsource = "teacher"\nlabels = "teacher"\n')
    run(config, until="labels")
    asked = Counter(method for method, _ in calls())
    assert asked["name_skill"] == 62 and asked["cluster"] == 2 and asked["label"] == 62 + 12
    assert {row["skill"] for row in rows(config, "catalog")} == {"sum", "choose"}
    assert run(config, until="labels", before=lambda bench: pipeline.forget_from(bench, "catalog")) == [
        "catalog",
        "labels",
    ]
    assert Counter(method for method, _ in calls()) == asked


def test_a_run_without_validation_file_holds_questions_out_of_training(make_files: Files, ask: Ask) -> None:
    config = make_files()
    config.write_text(
        config.read_text().replace('validation = "validation.jsonl"', "validation_questions = 10")
    )
    asked = [{"question": ask(number), "response": "\\boxed{0}"} for number in range(60)]
    (config.parent / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in asked))
    run(config)
    parts = Counter(row["part"] for row in rows(config, "labels"))
    assert parts == {"pool": 52, "validation": 10}
    held = {row["question_id"] for row in rows(config, "labels") if row["part"] == "validation"}
    assert not held & {source for row in rows(config, "dataset") for source in row["origin"]["source_ids"]}


def test_what_an_earlier_version_paid_counts_once(make_files: Files) -> None:
    config = load_stat(make_files())
    folder = config.data.train.parent / "run"
    folder.mkdir()
    entry = LedgerEntry(
        entry_id="e1", student=STUDENT, round_id="stat", day="2026-11-01", activity="label",
        usage=Usage(calls=3, usd=0.5),
    )  # fmt: skip
    (folder / "ledger.jsonl").write_text(entry.model_dump_json() + "\n" + entry.model_dump_json()[:40])
    for _ in range(2):
        with open_bench(config, folder) as bench:
            assert paid(bench.ledger, STUDENT) == entry.usage


def test_two_processes_do_not_share_a_run(make_files: Files) -> None:
    config = load_stat(make_files())
    with (
        open_bench(config, config.data.train.parent / "run"),
        pytest.raises(RunBusy, match="another process"),
    ):
        with open_bench(config, config.data.train.parent / "run"):
            pass
