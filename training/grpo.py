"""One training round by reinforcement: GRPO with a verifiable reward, which continues the champion's adapter.

Group Relative Policy Optimization (Shao et al., arXiv 2402.03300) as the STAT paper uses it after its
supervised rounds (section 4, table 2): constant learning rate, no KL term, several sampled answers to each
question. The reward of an answer is 1 when it is right (`TrainingJob.right`), else 0; one that cannot be
graded counts for nothing.

A round survives a kill as one of `training.sft` does, with the same files: the order of the questions is
computed beforehand, and the random states that sampling starts from are in the checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from training import sft
from training.checkpoints import CHECKPOINTS, last_complete, read_marker
from training.encode import batch_plan, encode
from training.errors import DatasetError
from training.loading import load_student, memory_plan
from training.memory import MemoryPlan
from training.settings import GrpoSettings, SftSettings
from training.trainer import Progress, Right, TrainedAdapter, TrainingJob, unwatched


@dataclass(frozen=True)
class GrpoTrainer:
    """The `training.trainer.Trainer` of this recipe. `shape` is the supervised rounds' recipe, of which a
    reinforced round keeps the adapter's form: a lineage has one."""

    settings: GrpoSettings
    shape: SftSettings

    def train(self, job: TrainingJob, on_progress: Progress = unwatched) -> TrainedAdapter:
        """See `training.trainer.Trainer.train`; `job.batch_size` counts questions, each answered
        `generations` times, and `tokens` prompts and sampled answers. Raises `DatasetError` for a job that
        cannot say which answers are right, and `NothingLearned` when all answers of every question were
        equally good."""
        if job.right is None:
            raise DatasetError("a GRPO round needs a task that grades final answers, and this job has none")
        done = sft.begin(job, self.settings, self.shape)
        if done is None:
            self._train(job, job.right, on_progress)
            done = sft.finished_result(job.out_dir)
            assert done is not None
        return done

    def _train(self, job: TrainingJob, right: Right, on_progress: Progress) -> None:
        memory = memory_plan(self.shape, job.base_dir, job.max_length, job.batch_size)
        tokenizer, model = load_student(self.shape, job, memory)
        rows = encode(job.examples, tokenizer, job.max_length)
        by_id = {example.example_id: example for example in job.examples}
        plan = batch_plan([len(row.input_ids) for row in rows], job.steps, job.batch_size, job.seed)
        asked = [by_id[rows[i].example_id] for i in plan]
        before = sft.trainable(model)
        checkpoint = last_complete(job.out_dir / CHECKPOINTS)
        watch = sft.TrainingWatch(on_progress, read_marker(checkpoint))
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=rewards(right),
            args=self._arguments(job, memory),
            train_dataset=Dataset.from_dict(
                {"prompt": [e.prompt for e in asked], "reference": [e.completion for e in asked]}
            ),
            processing_class=tokenizer,
            callbacks=[watch],
        )
        sft.run(trainer, checkpoint, watch)
        sft.finish(job, model, before, watch, {row.example_id for row in rows})

    def _arguments(self, job: TrainingJob, memory: MemoryPlan) -> GRPOConfig:
        settings, parts = self.settings, self.settings.micro_batches(job.batch_size)
        return sft.one_device(
            GRPOConfig(
                **sft.common_arguments(settings, job, memory),
                per_device_train_batch_size=job.batch_size * settings.generations // parts,
                gradient_accumulation_steps=parts,
                num_generations=settings.generations,
                max_completion_length=settings.max_new_tokens,
                temperature=settings.temperature,
                beta=settings.kl,
                shuffle_dataset=False,
                lr_scheduler_type="constant",
                gradient_checkpointing=settings.gradient_checkpointing,
            )
        )


def rewards(right: Right) -> Callable[..., list[float | None]]:
    """The reward function that TRL calls with sampled completions and the references they belong to."""

    def reward(completions: Sequence[str], reference: Sequence[str], **_: object) -> list[float | None]:
        graded = (right(wanted, answer) for wanted, answer in zip(reference, completions, strict=True))
        return [None if verdict is None else float(verdict) for verdict in graded]

    return reward
