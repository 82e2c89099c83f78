"""A curation killed (SIGKILL) at any node goes on where it died: same data set, nothing finished is asked of
the teacher again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from graphs.curate.plan import CRASH_POINTS
from tests.children import reports

MID_FAN_OUT = ("curate.write.start:3", "curate.solve.end:6")


@pytest.fixture(scope="module")
def rounds(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Mapping[str, Any]]:
    folder = tmp_path_factory.mktemp("rounds")
    return reports(Path(__file__).with_name("crash_rounds.py"), folder)


def called(lines: list[str], method: str) -> list[str]:
    return sorted(line for line in lines if line.startswith(f"{method} "))


@pytest.mark.parametrize("point", [*CRASH_POINTS, *MID_FAN_OUT, "keep"])
def test_a_killed_round_gives_the_same_data_set_and_leaves_no_thread(
    rounds: Mapping[str, Mapping[str, Any]], point: str
) -> None:
    report, whole = rounds[point], rounds["none"]
    assert report["killed"], f"{point} was never reached"
    assert report["resumed"] == 0 and report["dataset"] == whole["dataset"] and report["left_over"] == 0


def test_the_data_set_has_all_parts(rounds: Mapping[str, Mapping[str, Any]]) -> None:
    curation = json.loads(rounds["none"]["dataset"])
    strategies = [example["provenance"]["strategy"] for example in curation["examples"]]
    assert {part: strategies.count(part) for part in strategies}.keys() == {"select", "synthesize", "replay"}
    assert (
        curation["report"]["accepted"]["add"] == 12
        and curation["report"]["dropped"]["contaminated-exact"] == 1
    )


@pytest.mark.parametrize(
    ("steps", "finished"),
    [
        (("sieve", "rewrite", "solve"), ("write",)),
        (("filter", "assemble"), ("write", "rewrite", "solve")),
    ],
)
def test_finished_nodes_are_not_repeated(
    rounds: Mapping[str, Mapping[str, Any]], steps: tuple[str, ...], finished: tuple[str, ...]
) -> None:
    for point in (f"curate.{step}.{when}" for step in steps for when in ("start", "end")):
        report, whole = rounds[point], rounds["none"]
        for method in finished:
            assert called(report["first"], method) == called(whole["after"], method)
            assert not called(report["after"], method), f"{point}: {method} was repeated"


@pytest.mark.parametrize(
    ("point", "method"), [("curate.write.start:3", "write"), ("curate.solve.end:6", "solve")]
)
def test_finished_tasks_of_a_fan_out_are_not_repeated(
    rounds: Mapping[str, Mapping[str, Any]], point: str, method: str
) -> None:
    report, whole = rounds[point], rounds["none"]
    asked = len(called(report["first"], method)) + len(called(report["after"], method))
    # One task (2 prompts or questions) was in flight; the result of the one before may not have reached the
    # disk yet.
    assert 0 < len(called(report["first"], method)) and asked - len(called(whole["after"], method)) <= 4


def test_a_round_killed_after_its_result_was_kept_asks_nothing(
    rounds: Mapping[str, Mapping[str, Any]],
) -> None:
    assert rounds["keep"]["after"] == []
