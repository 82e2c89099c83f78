"""The train worker: a curated round becomes an adapter."""

from __future__ import annotations

from loop.workers.curate import DATASET, round_seed
from loop.workers.round import RoundWorker
from streams.state.ledger import entry_row
from streams.state.rounds import Round
from training.mix import assert_disjoint, read_dataset
from training.trainer import TrainingJob


class TrainWorker(RoundWorker):
    """Trains the round's adapter on top of the champion's."""

    STATE = "curated"

    def work(self, round_: Round) -> None:
        services = self.services
        curated = read_dataset(services.round_dir(round_.round_id) / DATASET)
        assert_disjoint(curated, services.task.held_out)
        examples = [
            example.model_copy(update={"prompt": services.task.prompt(example.prompt)}) for example in curated
        ]
        champion = services.registry.champion()
        size = services.config.train

        def progress(step: int, total: int, loss: float) -> None:
            services.crash("train.step")
            self.renew(round_)
            services.listen(
                "training", {"round_id": round_.round_id, "step": step, "steps": total, "loss": loss}
            )

        job = TrainingJob(
            base_dir=services.task.base_dir,
            champion=services.adapter_of(champion.version),
            examples=examples,
            out_dir=services.round_dir(round_.round_id) / "sft",
            steps=int(round_.record["decision"]["steps"]),
            batch_size=size.batch_size,
            max_length=size.max_length,
            seed=round_seed(services.config.seed, round_),
        )
        result = services.trainer.train(job, progress)
        patch = {
            "adapter_sha256": result.sha256,
            "tokens": result.tokens,
            "loss": result.final_loss,
            "trained_from": champion.version,
        }
        day = round_.record["decided_at"][:10]
        cost = entry_row(
            f"{round_.round_id}/train", round_.student, round_.round_id, day, "train", seconds=result.seconds
        )
        self.advance(round_, "trained", patch, [cost])
