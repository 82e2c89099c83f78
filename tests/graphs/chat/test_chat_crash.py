"""A curation with the chat teacher killed (SIGKILL) at any node: no call is made twice, and the data set is
identical.

Cost and provenance included: the replies come from the cache with what they cost when they were made.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from graphs.curate.plan import CRASH_POINTS
from tests.children import reports

ENDS = tuple(point for point in CRASH_POINTS if point.endswith(".end"))
POINTS = (*ENDS, "curate.write.start", "curate.write.end:2", "curate.solve.start:3", "keep")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def rounds(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Mapping[str, Any]]:
    folder = tmp_path_factory.mktemp("chat-rounds")
    return reports(Path(__file__).with_name("crash_chat_rounds.py"), folder)


@pytest.mark.parametrize("point", POINTS)
def test_as_many_calls_as_an_undisturbed_run_and_the_same_data_set(
    rounds: Mapping[str, Mapping[str, Any]], point: str
) -> None:
    report, whole = rounds[point], rounds["none"]
    assert report["killed"], f"{point} was never reached"
    assert report["resumed"] == 0 and report["dataset"] == whole["dataset"]
    assert report["calls"] == whole["calls"]


def test_the_undisturbed_run_asked_for_everything(rounds: Mapping[str, Mapping[str, Any]]) -> None:
    curation = json.loads(rounds["none"]["dataset"])
    assert {one["provenance"]["strategy"] for one in curation["examples"]} == {
        "select",
        "synthesize",
        "replay",
    }
    assert (
        curation["report"]["usage"]["calls"] == rounds["none"]["calls"] >= 8
        and curation["report"]["usage"]["usd"] > 0
    )
    assert (
        rounds["curate.solve.end"]["first"]
        > rounds["curate.write.end"]["first"]
        > rounds["curate.write.start"]["first"]
        == 0
    )
