"""The table of docs/demo.md is that of the committed figures."""

from __future__ import annotations

from pathlib import Path

from benchmarks.demo import finished, table

PAGE = Path(__file__).parents[3] / "docs" / "demo.md"


def test_the_table_is_that_of_the_committed_runs() -> None:
    runs = finished()
    assert len(runs) > 5 and len({run["seed"] for run in runs}) == len(runs)
    assert table(runs) in PAGE.read_text(encoding="utf-8")
