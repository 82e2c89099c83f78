"""The train worker: a curated round becomes an adapter."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path

from agent.items import Example
from loop.workers.curate import round_seed
from loop.workers.lease import Lease
from loop.workers.messages import Training
from loop.workers.record import LoopRound, Trained
from loop.workers.rest import TRAINING, device_freed
from loop.workers.round import RoundWorker
from loop.workers.services import Services, today
from streams.files import write_text
from streams.state.ledger import entry_row
from training.attempts import begin_attempt, sweep_attempts
from training.errors import TrainingError
from training.mix import assert_disjoint, write_as_trained
from training.trainer import BaseName, StopTraining, TrainedAdapter, TrainingJob

ADAPTERS = "sft"
AS_TRAINED = "data/train.jsonl"
CURVE = "train/curve.json"


class TrainWorker(RoundWorker):
    """Trains the round's adapter on top of the champion's, each attempt in a directory of its own, and stores
    it with the round's run, the data as trained and what the trainer reported.

    A kill between storing and moving the round stores again what is there already: nothing.
    """

    STATE = TRAINING

    def work(self, round_: LoopRound, lease: Lease) -> None:
        services = self.services
        champion = services.registry.champion()
        adapter = services.adapter_of(champion.version)
        root = services.round_dir(round_.round_id)
        attempt = begin_attempt(root / ADAPTERS, round_.fence)
        examples = self._examples(round_)
        result = self._train(round_, examples, adapter, attempt, lease)
        lease.renew()
        data_sha256, curve_sha256 = self._store(round_, examples, result)
        services.crash("train.after-upload")
        part = Trained(
            adapter_sha256=result.sha256,
            tokens=result.tokens,
            loss=result.final_loss if math.isfinite(result.final_loss) else None,
            parent=champion.version,
            directory=str(attempt.relative_to(root)),
            too_long=result.too_long,
            data_sha256=data_sha256,
            curve_sha256=curve_sha256,
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

    def _examples(self, round_: LoopRound) -> list[Example]:
        """The curated examples in the form in which the student is asked."""
        task, curated = self.services.task, self.services.examples_of(round_)
        assert_disjoint(curated, self.services.held_out.of(round_.record.opened.held_out))
        return [example.model_copy(update={"prompt": task.prompt(example.prompt)}) for example in curated]

    def _train(
        self, round_: LoopRound, examples: list[Example], adapter: Path | None, attempt: Path, lease: Lease
    ) -> TrainedAdapter:
        services, size = self.services, self.services.config.train

        def progress(step: int, total: int, loss: float) -> None:
            services.crash("train.step")
            lease.check()
            services.listen(Training(round_.round_id, step, total, loss))
            if services.stop.is_set():
                raise StopTraining

        job = TrainingJob(
            base_dir=services.task.base_dir,
            champion=adapter,
            examples=examples,
            out_dir=attempt,
            steps=round_.record.decision.steps,
            batch_size=size.batch_size,
            max_length=size.max_length,
            seed=round_seed(services.config.seed, round_),
            base_name=_named(services),
            right=services.task.right,
        )
        trainer = services.reinforcer if round_.record.decision.reinforced else services.trainer
        if trainer is None:
            raise TrainingError(
                "the round is to be reinforced, and policy.reinforce is off here: set it everywhere"
            )
        with device_freed(services, round_):
            return trainer.train(job, progress)

    def _store(self, round_: LoopRound, examples: list[Example], result: TrainedAdapter) -> tuple[str, str]:
        """Adapter, data as trained and curve into the round's run; the hashes of the last two."""
        registry, run_id, folder = self.services.registry, self.run_of(round_), result.adapter_dir.parent
        left_out = set(result.left_out)
        data, curve = folder / Path(AS_TRAINED).name, folder / Path(CURVE).name
        write_as_trained(data, (e for e in examples if e.example_id not in left_out))
        write_text(curve, json.dumps([asdict(point) for point in result.curve]) + "\n")
        registry.log_adapter(run_id, result.adapter_dir)
        return registry.put_file(run_id, data, AS_TRAINED), registry.put_file(run_id, curve, CURVE)


def _named(services: Services) -> BaseName | None:
    """What the configuration calls the base, if it does."""
    student = services.config.student
    return BaseName(student.hub_name, student.hub_revision) if student.hub_name else None
