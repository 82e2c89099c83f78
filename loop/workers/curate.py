"""The curate worker: a planned round becomes a data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from agent.catalog import SkillMap
from agent.chance import ordered
from agent.decision import Decision
from agent.items import Example, PoolItem
from agent.replay import keep
from graphs.chat.settings import callers
from graphs.checkpoints import sqlite_checkpoints
from graphs.curate.graph import build_curate, run_curation
from graphs.curate.plan import CurateContext, Curation, CurationPlan, ReplaySource
from loop.workers.lease import Lease
from loop.workers.record import Curated, LoopRound
from loop.workers.round import RoundWorker
from serving.engine import Sampling
from streams.state.ledger import entry_row
from training.mix import assert_disjoint, read_dataset, write_dataset

DATASET = "dataset.jsonl"


class CurateWorker(RoundWorker):
    """Selects or synthesizes, filters, decontaminates, adds replay, and writes
    `rounds/<id>/dataset.jsonl`."""

    STATE = "planned"

    def work(self, round_: LoopRound, lease: Lease) -> None:
        services = self.services
        decision = round_.record.decision
        settings = services.config.curate
        plan = CurationPlan(
            seed=round_seed(services.config.seed, round_),
            targets=decision.skills,
            synthesis=settings.synthesis,
            replay=settings.replay,
            min_agreement=settings.min_agreement,
        )
        with sqlite_checkpoints(services.root / "curation.db") as checkpointer:
            run_curation(
                build_curate(checkpointer),
                round_.round_id,
                plan,
                self._context(decision, round_, lease),
                keep=lambda curation: self._finish(round_, curation, lease),
                max_concurrency=callers(services.config.teacher.chat),
            )

    def _context(self, decision: Decision, round_: LoopRound, lease: Lease) -> CurateContext:
        def checkpoint(name: str) -> None:
            lease.check()
            self.services.crash(name)

        task, taught = self.services.task, self._taught_before(round_)
        targets = {target.skill for target in decision.skills}
        return CurateContext(
            teacher=task.teacher_of(round_.round_id),
            pool=task.pool,
            held_out=[item.question for item in task.held_out],
            used_items=Counter(
                source
                for e in taught
                if e.provenance.strategy == "select"
                for source in e.provenance.source_ids
            ),
            used_questions=[e.prompt for e in taught if e.provenance.strategy == "synthesize"],
            replay=ReplaySource(
                reservoir=self._reservoir(taught, targets),
                earlier={example.example_id: example for example in taught},
                original=self._known([item for item in task.pool if not targets & set(item.skills)], round_),
            ),
            crash=checkpoint,
        )

    def _taught_before(self, round_: LoopRound) -> list[Example]:
        """Target examples of the promoted rounds before this one, oldest first."""
        before = [
            other for other in self.services.rounds.list(round_.student) if other.number < round_.number
        ]
        promoted = [other.round_id for other in before if other.state == "promoted"]
        examples = [
            e for round_id in promoted for e in read_dataset(self.services.round_dir(round_id) / DATASET)
        ]
        return [example for example in examples if example.provenance.strategy != "replay"]

    def _known(self, items: Sequence[PoolItem], round_: LoopRound) -> list[PoolItem]:
        """Those of some pool items that the champion answers right.

        They keep what it has. Items it answers wrong would teach skills that no round has asked for
        (docs/student.md).
        """
        services, champion = self.services, round_.record.opened.champion
        services.load(champion)
        sampling = Sampling(max_new_tokens=services.config.student.max_new_tokens)
        ids = ordered([item.item_id for item in items], round_seed(services.config.seed, round_), "known")
        tried = set(ids[: services.config.curate.replay_candidates])
        asked = [item for item in items if item.item_id in tried]
        answers = services.engine.generate(
            [services.task.prompt(item.question) for item in asked], champion, sampling
        )
        return [
            item
            for item, answer in zip(asked, answers, strict=True)
            if services.task.grade(item.answer, answer[0])
        ]

    def _reservoir(self, taught: list[Example], targets: set[str]) -> dict[str, tuple[str, ...]]:
        """Examples of earlier targets that this round does not teach, by skill."""
        labels = {
            e.example_id: (e.provenance.skill,)
            for e in taught
            if e.provenance.skill and e.provenance.skill not in targets
        }
        by_skill = SkillMap(labels.items())
        return keep(
            {},
            {skill: by_skill.items(skill) for skill in by_skill.sizes},
            self.services.config.seed,
            self.services.config.curate.replay,
        )

    def _finish(self, round_: LoopRound, curation: Curation, lease: Lease) -> None:
        lease.renew()
        assert_disjoint(curation.examples, self.services.task.held_out)
        manifest = write_dataset(self.services.round_dir(round_.round_id) / DATASET, curation.examples)
        used = sorted(
            {
                s
                for e in curation.examples
                if e.provenance.strategy == "select"
                for s in e.provenance.source_ids
            }
        )
        part = Curated(manifest=manifest, report=curation.report, used=tuple(used))
        cost = entry_row(
            f"{round_.round_id}/curate",
            round_.student,
            round_.round_id,
            round_.record.day,
            "synthesize",
            curation.report.usage,
        )
        self.advance(round_, "curated", part, [] if self.services.task.books_itself else [cost])


def round_seed(seed: int, round_: LoopRound) -> int:
    """The seed of everything random in one round."""
    return seed * 10_000 + round_.number
