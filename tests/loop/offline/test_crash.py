"""`skillloop stat` killed (SIGKILL) between and inside stages: same bytes, no finished stage repeated,
nothing asked twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.children import reports

BETWEEN = (
    "stat.labels.begin",
    "stat.answers.made",
    "stat.diagnoses.finished",
    "stat.profile.made",
    "stat.dataset.made",
    "stat.dataset.finished",
)
INSIDE = (
    *(f"stat.{kind}.ask:3" for kind in ("labels", "diagnoses")),
    *(f"curate.{kind}.end:3" for kind in ("rewrite", "write", "solve")),
)
CONCURRENCY = 8


@pytest.fixture
def runs(make_files: Callable[..., Path]) -> Mapping[str, Mapping[str, Any]]:
    config = make_files(train=40, validation=8)
    return reports(Path(__file__).with_name("crash_stat.py"), config.parent, *BETWEEN, *INSIDE)


@pytest.mark.slow
def test_a_killed_run_ends_as_an_undisturbed_one(runs: Mapping[str, Mapping[str, Any]]) -> None:
    whole = runs["none"]
    assert {"dataset.jsonl", "dataset.card.md", "dataset-stat-syn.jsonl"} <= set(whole["results"])
    for point in (*BETWEEN, *INSIDE):
        report = runs[point]
        assert report["killed"], f"{point} was never reached"
        assert report["resumed"] == 0 and report["results"] == whole["results"], point
        stage = point.split(".")[1]
        done_again = Counter(report["stages"]) - Counter(whole["stages"])
        assert not done_again, f"{point}: {done_again} done twice"
        # killed after the manifest but before the line that this test counts: one line less
        assert Counter(whole["stages"]) - Counter(report["stages"]) == (
            Counter([stage]) if point.endswith(".finished") else Counter()
        )
        asked = Counter(report["calls"]) - Counter(whole["calls"])
        assert asked.total() <= (CONCURRENCY if point in INSIDE else 0), f"{point}: asked again {asked}"
        assert set(report["calls"]) == set(whole["calls"])
