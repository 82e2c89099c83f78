"""The judge worker: champion and challenger are measured, judged, and recorded with an MLflow run and a model
version."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from agent.items import Frozen, HeldOutItem, JsonObject
from loop.workers.lease import Lease
from loop.workers.messages import Evaluating
from loop.workers.record import Judged, LoopRound
from loop.workers.round import RoundWorker
from loop.workers.services import Services
from serving.adapter_files import adapter_sha256
from serving.engine import Sampling
from streams.files import text_sha256, write_text
from training.evaluate import Evaluation, Generate, Outcome, evaluate, item_set_sha256
from training.gate import GateVerdict, judge
from training.versions import Lineage

BASE = 1
"""The version of the untrained student."""
CANDIDATE = 0
"""The engine's slot for an adapter that is being judged: no registered version has this number."""
PROBES = 8


class JudgeWorker(RoundWorker):
    """Evaluates champion and challenger on the gate's items, judges, and records run and version in
    MLflow."""

    STATE = "trained"

    def work(self, round_: LoopRound, lease: Lease) -> None:
        services = self.services
        trained = round_.record.need_trained()
        adapter = services.round_dir(round_.round_id) / trained.directory / "adapter"
        items = services.held_out.of(round_.record.opened.held_out)
        champion = champion_evaluation(services, trained.parent, items)
        lease.check()
        challenger, probe = self._challenger(round_, adapter, items)
        lease.renew()
        verdict = judge(
            champion,
            challenger,
            round_.record.skills,
            services.config.gate,
            weights={estimate.skill: estimate.share for estimate in round_.record.opened.profile},
            history=[champion_evaluation(services, version, items) for version in _earlier(services, round_)],
        )
        before, after = champion.accuracy_by_skill(), challenger.accuracy_by_skill()
        services.crash("judge.before-run")
        started = services.registry.start_run(round_.round_id, round_.run_id)
        run_id = services.rounds.bind_run(round_, started)
        version = self._record(run_id, round_, adapter, (champion, challenger, verdict))
        services.crash("judge.after-run")
        gains = {skill: after[skill] - before[skill] for skill in after if skill in before}
        part = Judged(version=version, verdict=verdict, gains=gains, probe=probe, run_id=run_id)
        self.advance(round_, "judged", part)

    def _record(
        self,
        run_id: str,
        round_: LoopRound,
        adapter: Path,
        judged: tuple[Evaluation, Evaluation, GateVerdict],
    ) -> int:
        """Everything about the round into its MLflow run, then its version; each call can be repeated."""
        registry, (champion, challenger, verdict) = self.services.registry, judged
        manifest, trained = round_.record.need_curated().manifest, round_.record.need_trained()
        registry.log_params(run_id, _params(round_, self.services.config.train.chosen()))
        registry.log_evaluation(run_id, "before", champion)
        registry.log_evaluation(run_id, "after", challenger)
        figures = {"loss": trained.loss, "tokens": trained.tokens, "too_long": trained.too_long}
        registry.log_metrics(
            run_id, {f"train/{name}": float(value) for name, value in figures.items() if value is not None}
        )
        registry.log_manifest(run_id, manifest)
        registry.log_verdict(run_id, verdict)
        sha256 = registry.log_adapter(run_id, adapter)
        lineage = Lineage(
            parent=trained.parent,
            base_sha256=registry.champion().base_sha256,
            adapter_sha256=sha256,
            data_sha256=manifest.sha256,
            gate="open" if verdict.promote else "closed",
        )
        version = registry.create_version(round_.round_id, run_id, lineage).version
        registry.finish_run(run_id)
        return version

    def _challenger(
        self, round_: LoopRound, adapter: Path, items: Sequence[HeldOutItem]
    ) -> tuple[Evaluation, str]:
        """The challenger's evaluation and the digest of its probe answers; kept in the round's directory."""
        services = self.services
        services.engine.unload(CANDIDATE)
        services.engine.load(CANDIDATE, adapter)
        try:
            keep = services.round_dir(round_.round_id) / "evaluation.json"
            measure = Measure(services, CANDIDATE, adapter, f"the challenger of {round_.round_id}")
            return measure.on(items, keep), probe_digest(services, CANDIDATE)
        finally:
            services.engine.unload(CANDIDATE)


def _earlier(services: Services, round_: LoopRound) -> list[int]:
    """The versions that were champion before this round's parent, oldest first."""
    promoted = [
        other.record.judged.version
        for other in services.rounds.list(round_.student)
        if other.number < round_.number and other.state == "promoted" and other.record.judged
    ]
    return [version for version in (BASE, *promoted) if version != round_.record.need_trained().parent]


def champion_evaluation(services: Services, version: int, items: Sequence[HeldOutItem]) -> Evaluation:
    """The gate's evaluation of a served version on these items, each measured once and kept."""
    measure = Measure(services, version, services.adapter_of(version), f"version {version}")
    return measure.on(items, services.evaluation_file(version))


def probe_digest(services: Services, version: int) -> str:
    """A digest of the greedy answers of `version` to a few fixed questions: equal weights give equal
    answers."""
    prompts = [
        services.task.prompt(item.question)
        for item in services.task.held_out[:: max(1, len(services.task.held_out) // PROBES)]
    ]
    answers = services.engine.generate(prompts, version, _greedy(services))
    return hashlib.sha256("\x1e".join(answer[0] for answer in answers).encode()).hexdigest()


def _greedy(services: Services) -> Sampling:
    return Sampling(max_new_tokens=services.config.student.max_new_tokens)


class KeptOutcomes(Frozen):
    """Outcomes by a hash of item and prompt, with a hash of everything else that they depend on."""

    key: str
    outcomes: dict[str, Outcome]


@dataclass(frozen=True)
class Measure:
    """What `version` scores on held-out items. `who` is told to the listener."""

    services: Services
    version: int
    adapter: Path | None
    who: str

    def on(self, items: Sequence[HeldOutItem], keep: Path) -> Evaluation:
        """Its evaluation on these items. What `keep` has of these weights, with the prompts, decoding and
        grader of today, is not asked again: as the set grows, only its new items are."""
        key, kept = self._key(), _kept(keep)
        known = kept.outcomes if kept is not None and kept.key == key else {}
        names = {self._name(item): item for item in items}
        new = [item for name, item in names.items() if name not in known]
        if new or not items:  # none at all: `evaluate` says so
            self.services.listen(Evaluating(self.who, len(new)))
            made = evaluate(self._generate(new), self._grade, new).outcomes
            known = known | dict(zip(map(self._name, new), made, strict=True))
            write_text(keep, KeptOutcomes(key=key, outcomes=known).model_dump_json())
        return Evaluation(
            items_sha256=item_set_sha256(items), outcomes=tuple(known[self._name(item)] for item in items)
        )

    def _key(self) -> str:
        services, weights = self.services, "" if self.adapter is None else adapter_sha256(self.adapter)
        base = services.registry.champion().base_sha256
        return text_sha256(base, weights, repr(_greedy(services)), services.task.grader)

    def _name(self, item: HeldOutItem) -> str:
        return text_sha256(item.model_dump_json(), self.services.task.prompt(item.question))

    def _generate(self, items: Sequence[HeldOutItem]) -> Generate:
        def generate(_: Sequence[str]) -> list[str]:
            services = self.services
            services.load(self.version)
            prompts = [services.task.prompt(item.question) for item in items]
            answers = services.engine.generate(prompts, self.version, _greedy(services))
            return [answer[0] for answer in answers]

        return generate

    def _grade(self, item: HeldOutItem, answer: str) -> bool | None:
        return self.services.task.grade(item.answer, answer)


def _kept(path: Path) -> KeptOutcomes | None:
    """What is kept there; None also for the forms of earlier versions."""
    try:
        return KeptOutcomes.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def _params(round_: LoopRound, settings: JsonObject) -> JsonObject:
    decision, manifest = round_.record.decision, round_.record.need_curated().manifest
    return {
        **{f"train/{name}": value for name, value in settings.items()},
        "kind": decision.kind,
        "skills": ",".join(round_.record.skills),
        "steps": decision.steps,
        "examples": manifest.examples,
        "champion": round_.record.opened.champion,
        "dataset_sha256": manifest.sha256,
    }
