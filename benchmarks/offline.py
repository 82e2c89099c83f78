"""The offline method against real data: grader agreement, STAT-Sel's counts, train/test duplicates. Prints
ids, never texts.

python benchmarks/offline.py --data ../shared/data [--json FILE]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from graphs.curate.duplicates import SameQuestion
from graphs.filters.grading import MathGrader
from loop.offline.checks import agreement, difficult_questions, duplicates, selection_counts
from loop.tasks.questions import read_questions

DIFFICULT = 500


def grader(data: Path) -> dict[str, Any]:
    with MathGrader() as grade:
        result = agreement(data / "student_outputs_math.jsonl.gz", grade)
    print(
        f"grader: {result.answers} answers, agreement {result.share:.4f}, "
        f"{len(result.disagreements)} disagreements"
    )
    for answer in result.disagreements:
        print(
            f"  {answer.answer_id}: flag {answer.flag}, grader {answer.graded}; "
            f"expected {answer.expected!r}, flag read {answer.extracted!r}"
        )
    return {
        "answers": result.answers,
        "agreement": result.share,
        "disagreements": [answer.answer_id for answer in result.disagreements],
    }


def selection(data: Path, seed: int) -> dict[str, Any]:
    pool, test = read_questions(data / "math_train.jsonl.gz"), read_questions(data / "math_test.jsonl.gz")
    failures = difficult_questions(test, pool, DIFFICULT, seed)
    result = selection_counts(pool, failures, seed)
    print(
        f"STAT-Sel: {result.difficult} difficult questions, "
        f"{result.targets} missing skills, {result.drawn} draws of {result.items} questions"
    )
    print(f"  {result.pairs} pairs of {result.pair_items} questions")
    for skill, report in sorted(result.pools.items(), key=lambda pair: pair[1].pool)[:10]:
        print(f"  {skill}: pool {report.pool}, wanted {report.wanted}, drawn {report.picked}")
    small = sum(report.pool < 5 for report in result.pools.values())
    print(f"  {small} of {len(result.pools)} missing skills have a pool of fewer than 5 questions")
    counts = {
        name: getattr(result, name)
        for name in ("difficult", "targets", "drawn", "items", "pairs", "pair_items")
    }
    return {**counts, "small_pools": small}


def repeats(data: Path) -> dict[str, Any]:
    train, test = read_questions(data / "math_train.jsonl.gz"), read_questions(data / "math_test.jsonl.gz")
    result = {}
    for threshold in (0.6, 0.7, 0.8):
        found = duplicates(train, test, SameQuestion(threshold=threshold))
        exact = [item_id for item_id, same in found.items() if same == "exact"]
        near = [item_id for item_id, same in found.items() if same == "near"]
        print(
            f"train/test repeats at {threshold}: {len(exact)} exact {exact[:3]}, {len(near)} near {near[:3]}"
        )
        result[str(threshold)] = {"exact": len(exact), "near": len(near)}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    figures = {
        "grader": grader(arguments.data),
        "selection": selection(arguments.data, arguments.seed),
        "repeats": repeats(arguments.data),
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
