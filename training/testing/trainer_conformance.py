"""What every trainer must do (`training.trainer.Trainer`), as checks that take a trainer and a sound job.

    @pytest.mark.parametrize("check", CHECKS)
    def test_my_trainer(check, tmp_path):
        check(MyTrainer(), TrainingJob(base, None, examples, tmp_path / "round", 6, 4))

A job needs at least four steps; the trainer should report each step and save a checkpoint every second one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from serving.adapter_files import CorruptAdapter, adapter_sha256
from training.adapters import load_check
from training.errors import AdapterError, DatasetError, ExampleTooLong, TrainingError
from training.trainer import Trainer, TrainingJob

Check = Callable[[Trainer, TrainingJob], None]


class Interrupted(Exception):
    """What a progress callback raises to stop a round."""


def _raised(trainer: Trainer, job: TrainingJob) -> Exception | None:
    try:
        trainer.train(job)
    except Exception as exc:
        return exc
    return None


def gives_a_whole_adapter(trainer: Trainer, job: TrainingJob) -> None:
    """The adapter lies in `out_dir / "adapter"`, is sound, and has the hash that is said."""
    done = trainer.train(job)
    assert done.adapter_dir == job.out_dir / "adapter"
    load_check(done.adapter_dir)
    assert done.sha256 == adapter_sha256(done.adapter_dir)
    assert done.steps <= job.steps and done.tokens > 0 and done.seconds >= 0


def reports_its_progress(trainer: Trainer, job: TrainingJob) -> None:
    """Steps ascend to the total, which stays the same."""
    reports: list[tuple[int, int]] = []
    done = trainer.train(job, lambda step, total, loss: reports.append((step, total)))
    steps = [step for step, _ in reports]
    assert steps == sorted(set(steps)) and {total for _, total in reports} == {done.steps}


def returns_a_finished_round_without_training(trainer: Trainer, job: TrainingJob) -> None:
    """An equal job finds its result."""
    first, reports = trainer.train(job), list[int]()
    assert trainer.train(job, lambda step, total, loss: reports.append(step)) == first
    assert not reports


def repeats_exactly(trainer: Trainer, job: TrainingJob) -> None:
    """Equal jobs in two directories give equal adapters, another seed another one."""
    first, again, other = (
        trainer.train(replace(job, out_dir=job.out_dir / name, seed=seed))
        for name, seed in (("first", 1), ("again", 1), ("other", 2))
    )
    assert first.sha256 == again.sha256 != other.sha256


def resumes_where_it_was_stopped(trainer: Trainer, job: TrainingJob) -> None:
    """What the callback raises comes through; afterwards the round ends as an undisturbed one, and sooner."""
    undisturbed = trainer.train(replace(job, out_dir=job.out_dir / "undisturbed"))
    stopped, reports = replace(job, out_dir=job.out_dir / "stopped"), list[int]()

    def stop(step: int, total: int, loss: float) -> None:
        if step > job.steps // 2:
            raise Interrupted

    try:
        trainer.train(stopped, stop)
    except Interrupted:
        pass
    else:
        raise AssertionError("what the callback raised was swallowed")
    resumed = trainer.train(stopped, lambda step, total, loss: reports.append(step))
    assert resumed.sha256 == undisturbed.sha256 and resumed.tokens == undisturbed.tokens
    assert reports[0] > 1, "the round began anew"


def continues_a_champion(trainer: Trainer, job: TrainingJob) -> None:
    """The champion is the beginning, and stays as it is."""
    champion = trainer.train(replace(job, out_dir=job.out_dir / "champion"))
    fresh = trainer.train(replace(job, out_dir=job.out_dir / "fresh", seed=job.seed + 1))
    further = replace(job, out_dir=job.out_dir / "further", champion=champion.adapter_dir, seed=job.seed + 1)
    assert trainer.train(further).sha256 not in (champion.sha256, fresh.sha256)
    assert adapter_sha256(champion.adapter_dir) == champion.sha256


def refuses_another_job_in_its_directory(trainer: Trainer, job: TrainingJob) -> None:
    """A directory belongs to one job: its checkpoints would continue the wrong round."""
    trainer.train(job)
    assert isinstance(_raised(trainer, replace(job, seed=job.seed + 1)), TrainingError)


def refuses_bad_data(trainer: Trainer, job: TrainingJob) -> None:
    """No examples, an empty completion, an example that does not fit."""
    empty = job.examples[0].model_copy(update={"completion": " "})
    cases: tuple[tuple[TrainingJob, type[Exception]], ...] = (
        (replace(job, examples=(), out_dir=job.out_dir / "none"), DatasetError),
        (replace(job, examples=(empty,), out_dir=job.out_dir / "empty"), DatasetError),
        (replace(job, max_length=2, out_dir=job.out_dir / "long"), ExampleTooLong),
    )
    for bad, error in cases:
        assert isinstance(_raised(trainer, bad), error)


def refuses_a_champion_that_is_none(trainer: Trainer, job: TrainingJob) -> None:
    """A directory without an adapter is no champion."""
    assert isinstance(_raised(trainer, replace(job, champion=job.base_dir)), (AdapterError, CorruptAdapter))


CHECKS: tuple[Check, ...] = (
    gives_a_whole_adapter,
    reports_its_progress,
    returns_a_finished_round_without_training,
    repeats_exactly,
    resumes_where_it_was_stopped,
    continues_a_champion,
    refuses_another_job_in_its_directory,
    refuses_bad_data,
    refuses_a_champion_that_is_none,
)
