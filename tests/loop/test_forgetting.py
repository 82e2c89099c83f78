"""The study of five rounds: what it counts as forgotten, and that it resumes."""

from itertools import islice
from pathlib import Path

import pytest

from benchmarks import forgetting, reinforce
from benchmarks.forgetting import ARMS, SCHEDULE, Life, Rounds, anchored, finished, kept, main, tables
from benchmarks.learning_cells import Result
from benchmarks.learning_data import replay_example
from loop.tasks.student import student_dir
from loop.tasks.world.world import SKILLS, pool
from training.settings import SftSettings
from training.sft import SftTrainer
from training.steps import StepTrainer
from training.trainer import TrainingJob

SETS = ("chains-original", "chains-drifted", "unseen-pairs", "unseen-order")


def _result(**right: int) -> Result:
    strata = dict.fromkeys((*(f"skill:{skill}" for skill in SKILLS), *SETS), (50, 100))
    return Result(strata=strata | {f"skill:{skill}": (n, 100) for skill, n in right.items()})


def test_a_slip_is_counted_from_a_skills_own_round_and_a_loss_from_the_shipped_student() -> None:
    own = _result(left=90, equation=90)
    run = Rounds(arm="loop", seed=0, results=(_result(), own, own, own, own, _result(left=74, add=44)))
    found = kept(run)
    assert found["slipped"] == pytest.approx((16 + 40) / 8)
    assert found["taught"] == pytest.approx(24 / 9) and found["worst loss"] == pytest.approx(6)
    assert found["common"] == pytest.approx(-1) and found["chains"] == 0


def test_an_unknown_arm_is_named(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"unknown arms \['lop'\]"):
        main(arms="lop", cells=tmp_path / "cells.jsonl")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"STEPS": 2, "ITEMS": 2, "NEW": 20, "POOL": 10, "CANDIDATES": 20}
    for name, value in {**sizes, "SCHEDULE": SCHEDULE[:2]}.items():
        monkeypatch.setattr(forgetting, name, value)


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["loop", "merge"])
def test_a_broken_off_run_resumes_with_its_first_unfinished_round(
    arm: str, small: None, tmp_path: Path
) -> None:
    def life() -> Life:
        return Life(ARMS[arm], 0, tmp_path / "work", student_dir("llama"))

    broken = list(islice(life().results(), 2))
    trained = tmp_path / "work" / "round-1" / "result.json"
    written = trained.stat().st_mtime_ns
    whole = list(life().results())
    assert len(whole) == 3 and whole[:2] == broken and trained.stat().st_mtime_ns == written


@pytest.mark.slow
def test_a_finished_arm_is_not_run_again(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = tmp_path / "cells.jsonl"
    main(arms="no-replay", seeds="0", cells=cells, work=tmp_path / "work")
    assert [run.arm for run in finished(cells)] == ["no-replay"]
    monkeypatch.setattr(Life, "results", None)
    main(arms="no-replay", seeds="0", cells=cells, work=tmp_path / "work")
    assert "continue, no replay | 1 |" in tables(finished(cells)) and "no replay" in capsys.readouterr().out


@pytest.mark.slow
def test_a_student_held_to_the_champion_begins_alike_and_learns_less(tmp_path: Path) -> None:
    examples = [replay_example(item) for item in pool(0, {"left": 40})]

    def loss(weight: float, steps: int) -> float:
        folder = tmp_path / f"{weight}-{steps}"
        job = TrainingJob(student_dir("llama"), None, examples, folder, steps, 8, 256)
        with anchored(weight, {each.example_id for each in examples}):
            return SftTrainer(SftSettings(lr=2e-3, save_every=0, report_every=1)).train(job).final_loss

    assert loss(5.0, 2) == pytest.approx(loss(0.0, 2), rel=1e-4)  # a first step moves nothing
    assert loss(5.0, 8) > 1.05 * loss(0.0, 8)


def test_without_a_weight_the_trainer_is_the_products() -> None:
    with anchored(0.0, set()):
        assert SftTrainer.train.__globals__["StepTrainer"] is StepTrainer


@pytest.mark.slow
def test_a_reinforced_round_after_a_supervised_one_shares_it_with_the_control(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reinforce, "STEPS", 2)
    monkeypatch.setattr(reinforce, "GRPO_STEPS", 2)
    cells = tmp_path / "cells.jsonl"
    reinforce.main(arms="sft-grpo,sft", seeds="0", cells=cells, work=tmp_path / "work")
    both, one = finished(cells)
    assert [len(run.results) for run in (both, one)] == [3, 2] and both.results[:2] == one.results
    assert both.results[2].tokens > 0
    assert "one supervised round, then GRPO | 1 |" in reinforce.table(finished(cells))
