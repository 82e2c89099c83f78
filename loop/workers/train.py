"""The train worker: a curated round becomes an adapter."""

from __future__ import annotations

import math
from pathlib import Path

from loop.workers.curate import DATASET, round_seed
from loop.workers.lease import Lease
from loop.workers.messages import Training
from loop.workers.record import LoopRound, Trained
from loop.workers.round import RoundWorker
from loop.workers.services import today
from streams.state.ledger import entry_row
from training.attempts import begin_attempt, sweep_attempts
from training.mix import assert_disjoint, read_dataset
from training.trainer import TrainedAdapter, TrainingJob

ADAPTERS = "sft"


class TrainWorker(RoundWorker):
    """Trains the round's adapter on top of the champion's, each attempt in a directory of its own."""

    STATE = "curated"

    def work(self, round_: LoopRound, lease: Lease) -> None:
        services = self.services
        champion = services.registry.champion()
        adapter = services.adapter_of(champion.version)
        root = services.round_dir(round_.round_id)
        attempt = begin_attempt(root / ADAPTERS, round_.fence)
        result = self._train(round_, adapter, attempt, lease)
        part = Trained(
            adapter_sha256=result.sha256,
            tokens=result.tokens,
            loss=result.final_loss if math.isfinite(result.final_loss) else None,
            parent=champion.version,
            directory=str(attempt.relative_to(root)),
            too_long=result.too_long,
        )
        cost = entry_row(
            f"{round_.round_id}/train",
            round_.student,
            round_.round_id,
            today(self.services),
            "train",
            seconds=result.seconds,
        )
        self.advance(round_, "trained", part, [cost])
        sweep_attempts(root / ADAPTERS, attempt)

    def _train(self, round_: LoopRound, adapter: Path | None, attempt: Path, lease: Lease) -> TrainedAdapter:
        services, task, size = self.services, self.services.task, self.services.config.train
        curated = read_dataset(services.round_dir(round_.round_id) / DATASET)
        assert_disjoint(curated, services.held_out.of(round_.record.opened.held_out))
        examples = [example.model_copy(update={"prompt": task.prompt(example.prompt)}) for example in curated]

        def progress(step: int, total: int, loss: float) -> None:
            services.crash("train.step")
            lease.check()
            services.listen(Training(round_.round_id, step, total, loss))

        job = TrainingJob(
            base_dir=task.base_dir,
            champion=adapter,
            examples=examples,
            out_dir=attempt,
            steps=round_.record.decision.steps,
            batch_size=size.batch_size,
            max_length=size.max_length,
            seed=round_seed(services.config.seed, round_),
        )
        return services.trainer.train(job, progress)
