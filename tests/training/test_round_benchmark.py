"""`python -m benchmarks.round` at toy size and in this process, so that it cannot rot."""

from __future__ import annotations

import math

import pytest

from benchmarks import round_cell
from benchmarks.round import FIGURES, measure


@pytest.mark.slow
def test_the_benchmark_of_rounds_gives_its_figures() -> None:
    report = measure(["tiny"], 1, 3, 4, lambda *words: round_cell.main(*map(str, words)))
    assert report["failed"] == []
    medians = report["tiny"]["medians"]
    assert list(medians) == ["skillloop", "trl", "trl-fp32"]
    for figures in medians.values():
        assert set(FIGURES) <= set(figures)
        assert all(math.isfinite(figures[name]) for name in FIGURES)
        assert 0 <= figures["padding"] < 1 and figures["tokens_per_s"] > 0 and figures["peak_mib"] > 0
    losses = [figures["loss"] for figures in medians.values()]
    assert max(losses) - min(losses) < 0.1
    assert report["tiny_ratio_to_trl"] > 0 and report["tiny_cpu_ratio_to_trl_fp32"] > 0


def test_a_cell_that_fails_leaves_the_others_figures() -> None:
    prepared = {"device": "none", "contenders": ["skillloop", "trl"], "ceiling": 1.0, "parameters": 1}
    figures = dict.fromkeys([*FIGURES, "flops_per_s"], 2.0)

    def cell(name: str, *_: object) -> dict[str, object]:
        if name == "trl":
            raise RuntimeError("out of memory")
        return prepared if name == "base" else figures

    report = measure(["8b"], 2, 1, 1, cell)
    assert report["failed"] == ["8b with trl: out of memory"] * 2
    assert report["8b"]["medians"]["skillloop"]["tokens_per_s"] == 2.0
