"""The table over seeds says how far runs differ and how often one went badly."""

from __future__ import annotations

from typing import Any

from benchmarks.demo import table


def run(seed: int, shifted: float, promoted: bool, recall: float) -> dict[str, Any]:
    accuracies = {
        f"{name}_accuracy_{when}": 0.5
        for name in ("shifted", "missing", "original", "ood")
        for when in ("before", "after")
    }
    return accuracies | {
        "seed": seed,
        "shifted_accuracy_after": shifted,
        "served_accuracy_first": 0.5,
        "served_accuracy_last": 0.6,
        "worst_mastered_loss": 0.03,
        "precision": 1.0,
        "recall": recall,
        "rounds": [{"kind": "select", "promoted": promoted, "reasons": ["left: ceiling: gained 0.00"]}],
    }


def test_the_table_has_means_with_intervals_and_counts_what_went_badly() -> None:
    lines = table([run(1, 0.7, True, 1.0), run(2, 0.8, True, 1.0), run(3, 0.45, False, 0.5)]).splitlines()
    rows = {line.split(" | ")[0].strip("| "): line for line in lines}
    assert "15.00 ± 44.78 | -5.00 | 30.00" in rows["drifted mixtures, exam, points gained"]
    seen = {name: line.rstrip(" |").rpartition(" | ")[2] for name, line in rows.items()}
    assert seen["no round promoted"] == seen["recall below 1"] == "1 of 3"
    assert seen["a round selected"] == seen["a skill put aside"] == "3 of 3"
    assert seen["a mastered skill down by more than 3 points"] == "0 of 3"
    assert seen["drifted mixtures lower than before"] == "1 of 3"
