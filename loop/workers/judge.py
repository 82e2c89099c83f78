"""The judge worker: champion and challenger are measured, judged, and recorded with an MLflow run and a model
version."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from agent.items import Frozen, JsonObject
from loop.workers.lease import Lease
from loop.workers.messages import Evaluating
from loop.workers.record import Judged, LoopRound
from loop.workers.round import RoundWorker
from loop.workers.services import Services
from serving.adapter_files import adapter_sha256
from serving.engine import Sampling
from streams.files import text_sha256, write_text
from training.evaluate import Evaluation, evaluate, item_set_sha256
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
        champion = champion_evaluation(services, trained.parent)
        lease.check()
        challenger, probe = self._challenger(round_, adapter)
        lease.renew()
        verdict = judge(
            champion,
            challenger,
            round_.record.skills,
            services.config.gate,
            weights={estimate.skill: estimate.share for estimate in round_.record.opened.profile},
            history=[champion_evaluation(services, version) for version in _earlier(services, round_)],
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

    def _challenger(self, round_: LoopRound, adapter: Path) -> tuple[Evaluation, str]:
        """The challenger's evaluation and the digest of its probe answers; kept in the round's directory."""
        services = self.services
        services.engine.unload(CANDIDATE)
        services.engine.load(CANDIDATE, adapter)
        try:
            keep = services.round_dir(round_.round_id) / "evaluation.json"
            told = Evaluating(f"the challenger of {round_.round_id}", len(services.task.held_out))
            return measured(services, CANDIDATE, adapter, keep, told), probe_digest(services, CANDIDATE)
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


def champion_evaluation(services: Services, version: int) -> Evaluation:
    """The gate's evaluation of a served version, measured once and kept."""
    told = Evaluating(f"version {version}", len(services.task.held_out))
    return measured(services, version, services.adapter_of(version), services.evaluation_file(version), told)


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


class KeptEvaluation(Frozen):
    """An evaluation with a hash of everything that it depends on."""

    key: str
    evaluation: Evaluation


def measured(
    services: Services, version: int, adapter: Path | None, keep: Path, told: Evaluating
) -> Evaluation:
    """What `version` scores on the gate's items: as kept in `keep`, if it was measured of these weights on
    these items with the prompts, decoding and grader of today."""
    task, sampling = services.task, _greedy(services)
    prompts = [task.prompt(item.question) for item in task.held_out]
    weights = "" if adapter is None else adapter_sha256(adapter)
    base = services.registry.champion().base_sha256
    key = text_sha256(base, weights, repr(sampling), task.grader, item_set_sha256(task.held_out), *prompts)
    known = _kept(keep)
    if known is not None and known.key == key:
        return known.evaluation
    services.listen(told)

    def generate(_: Sequence[str]) -> list[str]:
        services.load(version)
        return [answers[0] for answers in services.engine.generate(prompts, version, sampling)]

    evaluation = evaluate(generate, lambda item, answer: task.grade(item.answer, answer), task.held_out)
    write_text(keep, KeptEvaluation(key=key, evaluation=evaluation).model_dump_json())
    return evaluation


def _kept(path: Path) -> KeptEvaluation | None:
    """What is kept there; None also for the form of earlier versions, which does not say how it was made."""
    try:
        return KeptEvaluation.model_validate_json(path.read_bytes())
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
