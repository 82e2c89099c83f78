"""The learning benchmark: its cells survive a crash, its scores are those of the engine's answers, its tables
are those of the committed cells."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.learning_cells import CELLS, SHIPPED, Cell, CellFile, Result
from benchmarks.learning_scores import SAMPLING, Answerer, Marked, drifted, exam, scores
from benchmarks.learning_table import PAGE, Difference, difference, holm, page, row, sections
from loop.tasks.student import student_dir
from loop.tasks.world.world import SKILLS

ROOT = Path(__file__).parents[2]
CELL = Cell(0, "vanilla")
RESULT = Result(strata={"skill:add": (3, 4)}, tokens=5)
TINY = ("--scenario", "strong", "--size", "tiny", "--steps", "2", "--items", "2", "--seeds", "0")


def test_the_committed_tables_are_those_of_the_committed_cells() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert page(text, sections(CellFile(CELLS))) == text


def test_a_torn_line_loses_one_cell_and_hurts_no_other(tmp_path: Path) -> None:
    path = tmp_path / "cells.jsonl"
    CellFile(path).add(CELL, RESULT)
    with path.open("a") as file:
        file.write('{"protocol": 1, "seed"')
    torn, other = CellFile(path), Cell(1, "vanilla")
    assert list(torn) == [CELL] and torn[CELL] == RESULT
    torn.add(other, RESULT)
    assert list(CellFile(path)) == [CELL, other] and len(path.read_text().splitlines()) == 2


def test_cells_of_another_protocol_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "cells.jsonl"
    CellFile(path).add(CELL, RESULT)
    path.write_text(path.read_text().replace('"protocol": 1', '"protocol": 0'))
    assert CELL not in CellFile(path)


def test_every_setting_of_a_cell_is_in_its_key(tmp_path: Path) -> None:
    file = CellFile(tmp_path / "cells.jsonl")
    file.add(CELL, RESULT)
    assert not any(
        other in file for other in (Cell(0, "vanilla", lr=1e-3), Cell(0, "vanilla", replay="none"))
    )


def _result(right: float) -> Result:
    strata = dict.fromkeys((f"skill:{skill}" for skill in SKILLS), (50, 100))
    chains = ("chains-original", "chains-drifted", "unseen-pairs", "unseen-order")
    return Result(strata={**strata, **dict.fromkeys(chains, (50, 100)), "skill:left": (round(right), 100)})


def test_mixtures_are_weighted_strata() -> None:
    points = scores(_result(90), "narrow")
    weights = drifted("narrow").weights
    assert sum(weights.values()) == pytest.approx(1.0) and weights["left"] == 0.06
    assert points["drifted"] == pytest.approx(50 + 0.85 * 0.06 * 40)
    assert points["targets"] == 70 and points["chains"] == 50
    assert points["balanced"] == pytest.approx(50 + 40 / 15)


def test_differences_are_paired_by_seed_and_corrected_for_their_number() -> None:
    ours = row("ours", [(Cell(seed, "stat-syn"), _result(80 + seed)) for seed in range(4)])
    other = row("other", [(Cell(seed, "vanilla"), _result(60 + 2 * seed)) for seed in range(1, 4)])
    found = difference(ours, other, "targets")
    assert found is not None and found.seeds == 3
    assert found.mean == pytest.approx(9.0) and found.half_width == pytest.approx(4.303 * 0.5 / 3**0.5, 1e-3)
    assert difference(ours, row("one", [(Cell(0, "vanilla"), _result(1))]), "targets") is None
    many = [Difference(str(p), "targets", 1.0, 1.0, p, 5) for p in (0.04, 0.01, 0.03)]
    assert [each.p for each in holm(many)] == pytest.approx([0.06, 0.03, 0.06])


def test_flips_are_counted_both_ways_against_the_shipped_student() -> None:
    items = exam("exam", "narrow", 2)[:4]
    marked = Marked(items, right="1100", before="1010")
    assert sum(marked.count("0", "1").values()) == sum(marked.count("1", "0").values()) == 1
    assert sum(right for right, _ in marked.strata().values()) == 2


@pytest.mark.slow
def test_answers_that_need_no_generation_are_those_of_the_engine() -> None:
    questions = [item.question for item in exam("gate", "narrow", 3)]
    answerer = Answerer(student_dir("llama"))
    generated = answerer.engine.generate(questions, 1, SAMPLING)
    assert answerer.answers(questions) == [answers[0] for answers in generated]


@pytest.mark.slow
def test_a_killed_run_resumes_and_repeats_no_finished_cell(tmp_path: Path) -> None:
    cells, work = tmp_path / "cells.jsonl", tmp_path / "work"
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.learning", *TINY, "--methods"]
    command += ["vanilla,stat-syn", "--cells", str(cells), "--work", str(work)]
    with subprocess.Popen(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}) as process:
        end = time.monotonic() + 300
        while time.monotonic() < end and process.poll() is None and len(list(CellFile(cells))) < 2:
            time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
    before = cells.read_bytes()
    assert [cell.method for cell in CellFile(cells)] == [SHIPPED, "vanilla"]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, timeout=300)
    assert cells.read_bytes().startswith(before)
    rows = [json.loads(line) for line in cells.read_text().splitlines()]
    assert [each["method"] for each in rows] == [SHIPPED, "vanilla", "stat-syn"]
    assert rows[2]["result"]["tokens"] > 0 and rows[2]["result"]["calls"] > rows[1]["result"]["calls"]
