"""The curate worker: a planned round becomes a data set."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path

from agent.catalog import SkillMap
from agent.chance import ordered
from agent.decision import Decision
from agent.items import Example, PoolItem
from agent.replay import keep
from agent.strategies import plan_targets
from graphs.chat.settings import callers
from graphs.checkpoints import sqlite_checkpoints
from graphs.curate.duplicates import question_key
from graphs.curate.graph import begun_plan, build_curate, run_curation
from graphs.curate.neighbours import embedding
from graphs.curate.plan import (
    Approval,
    Approve,
    AwaitingApproval,
    CurateContext,
    Curation,
    CurationPlan,
    DataRejected,
    ReplaySource,
)
from graphs.curate.planning import Evidence, plan_data
from loop.backends import open_log
from loop.workers.approve import ask_for_data, told
from loop.workers.failures import recent_failures
from loop.workers.lease import Lease
from loop.workers.messages import Curating
from loop.workers.record import Curated, Ended, LoopRound
from loop.workers.round import RoundWorker, answers_total
from loop.workers.services import DATASET, Services, today
from serving.engine import Sampling
from streams.files import read_json, text_sha256, write_json
from streams.log import EventLog
from streams.state.ledger import entry_row
from training.mix import assert_disjoint, write_dataset
from training.verdict import PAIRED

logger = logging.getLogger(__name__)
KNOWN = "known.json"
HARMED = frozenset({"skill", "protected"})
LOGGED = 100
"""Of the teacher's calls for a round, every so many are logged."""


class CurateWorker(RoundWorker):
    """Plans what to draw and to ask for, has it curated with replay, and writes `rounds/<id>/dataset.jsonl`,
    which the round's run keeps.

    Strategies that plan from recent failures read the event log: the configured one, or what `read_log`
    opens.
    """

    STATE = "planned"

    def __init__(
        self, services: Services, read_log: Callable[[], AbstractContextManager[EventLog]] | None = None
    ) -> None:
        super().__init__(services)
        self._read_log = read_log or partial(open_log, services.config, services.root, None)

    def work(self, round_: LoopRound, lease: Lease) -> float | None:
        try:
            self._curate(round_, lease)
        except AwaitingApproval as exc:
            logger.info("%s", exc)
            return self.services.config.rounds.look_s
        except DataRejected as exc:
            self.advance(round_, "rejected", Ended(answers=answers_total(self.services), error=str(exc)))
        return None

    def _curate(self, round_: LoopRound, lease: Lease) -> None:
        services, taught = self.services, self._taught_before(round_)
        with sqlite_checkpoints(services.root / "curation.db") as checkpointer:
            graph = build_curate(checkpointer)
            plan = begun_plan(graph, round_.round_id) or self._plan(round_, taught)
            run_curation(
                graph,
                round_.round_id,
                plan,
                self._context(round_, taught, lease),
                keep=lambda curation: self._finish(round_, curation, lease),
                max_concurrency=callers(services.config.teacher.chat),
            )

    def _plan(self, round_: LoopRound, taught: list[Example]) -> CurationPlan:
        """The policy decides when, which skills and how many examples; the strategy, what they are made
        of."""
        config, task = self.services.config, self.services.task
        decision = round_.record.decision
        seed, settings, name = round_seed(config.seed, round_), config.strategy, config.curate.strategy
        pairs: int | None = None
        if name == "policy":
            pool = SkillMap((item.item_id, item.skills) for item in task.pool)
            used = Counter(
                source
                for e in taught
                if e.provenance.strategy == "select"
                for source in e.provenance.source_ids
            )
            data = plan_targets(decision.skills, pool, seed, used, settings)
        else:
            pairs = min(settings.pairs, decision.examples)
            settings = settings.model_copy(update={"pairs": pairs})
            items = {item.item_id: item for item in task.pool}
            data = plan_data(
                name, items, self._evidence(round_, decision), seed, settings, embedding(config.embed)
            )
        return CurationPlan(
            seed=seed,
            data=data,
            pairs=pairs,
            strategy=settings,
            duplicates=config.duplicates,
            replay=config.curate.replay,
        )

    def _evidence(self, round_: LoopRound, decision: Decision) -> Evidence:
        section = self.services.config.curate
        with self._read_log() as log:
            evidence = recent_failures(
                log,
                round_.student,
                round_.record.opened.champion,
                {target.skill for target in decision.skills},
                section.failures,
                section.recent_records,
            )
        held_out = {question_key(question) for question in self.services.held_out.never_trained_on()}
        planned_from = [
            failure
            for failure in evidence.failures
            if question_key(evidence.questions.get(failure.question_id, "")) not in held_out
        ]
        return replace(evidence, failures=planned_from, levels=self.services.task.levels)

    def _context(self, round_: LoopRound, taught: list[Example], lease: Lease) -> CurateContext:
        def checkpoint(name: str) -> None:
            lease.check()
            self.services.crash(name)

        task, targets = self.services.task, {target.skill for target in round_.record.decision.skills}
        return CurateContext(
            teacher=task.teacher_of(round_.round_id),
            pool=task.pool,
            held_out=self.services.held_out.never_trained_on(),
            used_questions=[e.prompt for e in taught if e.provenance.strategy == "synthesize"],
            replay=ReplaySource(
                reservoir=self._reservoir(taught, targets),
                earlier={example.example_id: example for example in taught},
                original=self._known([item for item in task.pool if not targets & set(item.skills)], round_),
            ),
            grade=task.grade,
            progress=partial(self._told, round_.round_id),
            crash=checkpoint,
            approve=self._approve(round_),
        )

    def _told(self, round_id: str, kind: str, done: int, total: int) -> None:
        self.services.listen(Curating(round_id, kind, done, total))
        if done == total or done % LOGGED == 0:
            logger.info("round %s: %s, %d of %d calls", round_id, kind, done, total)

    def _taught_before(self, round_: LoopRound) -> list[Example]:
        """Target examples of the promoted rounds before this one, oldest first."""
        before = [
            other for other in self.services.rounds.list(round_.student) if other.number < round_.number
        ]
        promoted = [other for other in before if other.state == "promoted"]
        examples = [example for other in promoted for example in self.services.examples_of(other)]
        return [example for example in examples if example.provenance.strategy != "replay"]

    def _known(self, items: Sequence[PoolItem], round_: LoopRound) -> list[PoolItem]:
        """Those of some pool items that the champion answers right.

        They keep what it has. Items it answers wrong would teach skills that no round has asked for
        (docs/student.md), but for skills that a rejected round has harmed: what is hardly there is lost
        first, and would be lost again. Its answers are kept with the round: an attempt that failed for want
        of the teacher need not have them generated again.
        """
        services, champion = self.services, round_.record.opened.champion
        sampling = Sampling(max_new_tokens=services.config.student.max_new_tokens)
        ids = ordered([item.item_id for item in items], round_seed(services.config.seed, round_), "known")
        tried = set(ids[: services.config.curate.replay_candidates])
        asked = [item for item in items if item.item_id in tried]
        prompts = [services.task.prompt(item.question) for item in asked]
        key = text_sha256(round_.student, str(champion), repr(sampling), *prompts)
        keep = services.round_dir(round_.round_id) / KNOWN
        kept = read_json(keep) or {}
        if kept.get("key") != key:
            services.load(champion)
            answers = services.engine.generate(prompts, champion, sampling)
            kept = {"key": key, "answers": [answer[0] for answer in answers]}
            write_json(keep, kept)
        harmed = self._harmed(round_)
        return [
            item
            for item, answer in zip(asked, kept["answers"], strict=True)
            if harmed & set(item.skills) or services.task.grade(item.answer, answer)
        ]

    def _harmed(self, round_: LoopRound) -> set[str]:
        """Skills, alone or in pairs, for whose loss earlier rounds of this champion were rejected."""
        rejected = [
            other.record.judged.verdict
            for other in self.services.rounds.list(round_.student)
            if other.number < round_.number
            and other.state == "rejected"
            and other.record.opened.champion == round_.record.opened.champion
            and other.record.judged
        ]
        rate = self.services.config.gate.harm_rate
        lost = [row for verdict in rejected for row in verdict.table if row.harmed(rate)]
        alone = {row.name for row in lost if row.kind in HARMED}
        return alone.union(*(row.name.split(PAIRED) for row in lost if row.kind == "pair"))

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

    def _approve(self, round_: LoopRound) -> Approve | None:
        """Who asks a person, where one has to decide on the data."""
        if self.services.config.rounds.approve != "data":
            return None

        def approve(curation: Curation) -> Approval | None:
            decided = ask_for_data(self.services, round_, curation)
            return None if decided is None else Approval(approved=decided.approved, reason=told(decided))

        return approve

    def _finish(self, round_: LoopRound, curation: Curation, lease: Lease) -> None:
        lease.renew()
        assert_disjoint(curation.examples, self.services.held_out.of(round_.record.opened.held_out))
        path = self.services.round_dir(round_.round_id) / Path(DATASET).name
        manifest = write_dataset(path, curation.examples)
        run_id = self.run_of(round_)
        self.services.registry.put_file(run_id, path, DATASET)
        self.services.crash("curate.after-upload")
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
            today(self.services),
            "synthesize",
            curation.report.usage,
        )
        self.advance(round_, "curated", part, [] if self.services.task.books_itself else [cost])


def round_seed(seed: int, round_: LoopRound) -> int:
    """The seed of everything random in one round."""
    return seed * 10_000 + round_.number
