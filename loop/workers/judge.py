"""The judge worker: champion and challenger are measured and judged, and the round's run in the registry is
completed with a model version."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from agent.items import Frozen, HeldOutItem, JsonObject
from loop.workers.lease import Lease
from loop.workers.messages import Evaluating
from loop.workers.record import Judged, LoopRound
from loop.workers.round import RoundWorker
from loop.workers.services import DATASET, Services
from loop.workers.train import AS_TRAINED, CURVE
from serving.adapter_files import adapter_sha256
from serving.engine import Sampling
from streams.files import text_sha256, write_text
from training.artifacts import ADAPTER, stored_name
from training.errors import ArtifactError
from training.evaluate import Evaluation, Outcome, evaluate, item_set_sha256
from training.gate import GateVerdict, judge
from training.report import RoundStory, Sample, choose_samples, description, headline, page
from training.trainer import CurvePoint
from training.versions import Lineage, TrainedData

logger = logging.getLogger(__name__)

BASE = 1
"""The version of the untrained student."""
CANDIDATE = 0
"""The engine's slot for an adapter that is being judged: no registered version has this number."""
PROBES = 8
EVALUATION = "evaluation/{phase}.json"
KEPT_CHARACTERS = 4000
"""Of an answer, in an evaluation's file."""
CURVES = TypeAdapter(tuple[CurvePoint, ...])


class JudgeWorker(RoundWorker):
    """Evaluates champion and challenger on the gate's items, judges, and records the round's results and its
    version in the registry."""

    STATE = "trained"

    def work(self, round_: LoopRound, lease: Lease) -> None:
        services = self.services
        trained, adapter = round_.record.need_trained(), services.trained_adapter(round_)
        items = services.held_out.of(round_.record.opened.held_out)
        champion = champion_evaluation(services, trained.parent, items)
        lease.check()
        challenger, probe = self._challenger(round_, adapter, items)
        lease.renew()
        verdict = judge(
            champion.evaluation,
            challenger.evaluation,
            round_.record.skills,
            services.config.gate,
            weights={estimate.skill: estimate.share for estimate in round_.record.opened.profile},
            history=[
                champion_evaluation(services, version, items).evaluation
                for version in _earlier(services, round_)
            ],
        )
        services.crash("judge.before-run")
        run_id = self.run_of(round_)
        judged = _Results(round_, items, champion, challenger, verdict)
        before_sha256, after_sha256 = self._store(run_id, judged)
        version = self._register(run_id, judged, adapter)
        services.crash("judge.after-run")
        self.advance(
            round_,
            "judged",
            Judged(
                version=version,
                verdict=verdict,
                gains=judged.gains(),
                probe=probe,
                run_id=run_id,
                before_sha256=before_sha256,
                after_sha256=after_sha256,
            ),
        )

    def _store(self, run_id: str, results: _Results) -> tuple[str, str]:
        """Figures, curves, evaluations and verdict into the round's run; each call can be repeated. The
        hashes of the stored evaluations."""
        registry, trained = self.services.registry, results.round_.record.need_trained()
        registry.log_params(run_id, _params(results.round_, self.services.config.train.chosen()))
        registry.log_evaluation(run_id, "before", results.champion.evaluation)
        registry.log_evaluation(run_id, "after", results.challenger.evaluation)
        registry.log_metrics(run_id, {"train/tokens": trained.tokens, "train/too_long": trained.too_long})
        self._log_curve(run_id, results.round_)
        registry.log_verdict(run_id, results.verdict)
        folder = self.services.round_dir(results.round_.round_id)
        before, after = (
            registry.put_file(run_id, path, EVALUATION.format(phase=phase))
            for phase, path in (
                ("before", self.services.evaluation_file(trained.parent)),
                ("after", folder / "evaluation.json"),
            )
        )
        return before, after

    def _log_curve(self, run_id: str, round_: LoopRound) -> None:
        """What the trainer reported. It is logged here and not where it was trained: whoever trains a second
        time has other times, and only one of the two is the round's."""
        sha256 = round_.record.need_trained().curve_sha256
        if sha256:
            path = self.services.round_dir(round_.round_id) / Path(CURVE).name
            kept = self.services.registry.get_file(run_id, path, CURVE, sha256)
            self.services.registry.log_curve(run_id, CURVES.validate_json(kept.read_bytes()))

    def _register(self, run_id: str, results: _Results, adapter: Path) -> int:
        """The round's version, and the pages that tell of it."""
        registry, round_ = self.services.registry, results.round_
        data, verdict, sha256 = _data(round_), results.verdict, registry.log_adapter(run_id, adapter)
        if data.artifact == AS_TRAINED:
            registry.log_data(run_id, data)
        lineage = Lineage(
            parent=round_.record.need_trained().parent,
            base_sha256=registry.champion().base_sha256,
            adapter_sha256=sha256,
            data_sha256=data.sha256,
            gate="open" if verdict.promote else "closed",
        )
        story = _story(round_, verdict, lineage)
        tags = {name: str(value) for name, value in vars(lineage).items()}
        registry.describe_run(run_id, description(story), tags | {"skills": ", ".join(story.skills)})
        registry.log_text(run_id, page(story, self._samples(results)), "gate/report.html")
        version = registry.create_version(round_.round_id, run_id, lineage, headline(story)).version
        registry.finish_run(run_id)
        return version

    def _samples(self, results: _Results) -> list[Sample]:
        """Answers of both side by side."""
        was, now = results.champion, results.challenger
        outcomes = zip(was.evaluation.outcomes, now.evaluation.outcomes, strict=True)
        answers = zip(was.answers, now.answers, strict=True)
        return choose_samples(
            Sample(item.skills, item.question, item.answer, *texts, old.correct, new.correct)
            for item, texts, (old, new) in zip(results.items, answers, outcomes, strict=True)
        )

    def _challenger(
        self, round_: LoopRound, adapter: Path, items: Sequence[HeldOutItem]
    ) -> tuple[Measured, str]:
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


def champion_evaluation(services: Services, version: int, items: Sequence[HeldOutItem]) -> Measured:
    """The gate's evaluation of a served version on these items, each measured once, by whichever worker, and
    kept."""
    if not services.evaluation_file(version).is_file():
        _fetch_evaluation(services, version)
    measure = Measure(services, version, services.adapter_of(version), f"version {version}")
    return measure.on(items, services.evaluation_file(version))


def _fetch_evaluation(services: Services, version: int) -> None:
    """The evaluation of a version from the run that made it, or that was measured against it. One that cannot
    be had is measured again."""
    for round_ in reversed(services.rounds.list(services.student)):
        judged, trained = round_.record.judged, round_.record.trained
        if judged is None or trained is None or version not in (judged.version, trained.parent):
            continue
        phase = "after" if judged.version == version else "before"
        sha256 = judged.after_sha256 if phase == "after" else judged.before_sha256
        if not sha256:
            continue
        artifact = EVALUATION.format(phase=phase)
        try:
            services.registry.get_file(judged.run_id, services.evaluation_file(version), artifact, sha256)
            return
        except ArtifactError as exc:
            logger.warning("the evaluation of version %d is not there: %s", version, exc)


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


class KeptAnswer(Frozen):
    """What a student scored on one item, and its answer, of several the first, cut short."""

    outcome: Outcome
    answer: str


class KeptAnswers(Frozen):
    """Answers by a hash of item and prompt, with a hash of everything else that they depend on."""

    key: str
    answers: dict[str, KeptAnswer]


@dataclass(frozen=True)
class Measured:
    """An evaluation, and the answers in its order."""

    evaluation: Evaluation
    answers: tuple[str, ...]


@dataclass(frozen=True)
class _Results:
    """A round with both evaluations on its items and the verdict on them."""

    round_: LoopRound
    items: Sequence[HeldOutItem]
    champion: Measured
    challenger: Measured
    verdict: GateVerdict

    def gains(self) -> dict[str, float]:
        """The change of accuracy per skill."""
        before = self.champion.evaluation.accuracy_by_skill()
        after = self.challenger.evaluation.accuracy_by_skill()
        return {skill: after[skill] - before[skill] for skill in after if skill in before}


@dataclass(frozen=True)
class Measure:
    """What `version` scores on held-out items. `who` is told to the listener."""

    services: Services
    version: int
    adapter: Path | None
    who: str

    def on(self, items: Sequence[HeldOutItem], keep: Path) -> Measured:
        """Its evaluation on these items. What `keep` has of these weights, with the prompts, decoding and
        grader of today, is not asked again: as the set grows, only its new items are."""
        key, kept = self._key(), _kept(keep)
        known = kept.answers if kept is not None and kept.key == key else {}
        names = {self._name(item): item for item in items}
        new = [item for name, item in names.items() if name not in known]
        if new or not items:  # none at all: `evaluate` says so
            known = known | self._ask(new)
            write_text(keep, KeptAnswers(key=key, answers=known).model_dump_json())
        measured = [known[self._name(item)] for item in items]
        evaluation = Evaluation(
            items_sha256=item_set_sha256(items), outcomes=tuple(answer.outcome for answer in measured)
        )
        return Measured(evaluation, tuple(answer.answer for answer in measured))

    def _ask(self, items: Sequence[HeldOutItem]) -> dict[str, KeptAnswer]:
        self.services.listen(Evaluating(self.who, len(items)))
        answers: list[str] = []

        def generate(_: Sequence[str]) -> list[str]:
            services = self.services
            services.load(self.version)
            prompts = [services.task.prompt(item.question) for item in items]
            drawn = services.engine.generate(prompts, self.version, self._decoding())
            answers.extend(samples[0] for samples in drawn)
            return [answer for samples in drawn for answer in samples]

        grade = self.services.task.grade
        made = evaluate(
            generate, lambda item, answer: grade(item.answer, answer), items, self._decoding().samples
        )
        return {
            self._name(item): KeptAnswer(outcome=outcome, answer=answer[:KEPT_CHARACTERS])
            for item, outcome, answer in zip(items, made.outcomes, answers, strict=True)
        }

    def _key(self) -> str:
        services, weights = self.services, "" if self.adapter is None else adapter_sha256(self.adapter)
        base = services.registry.champion().base_sha256
        return text_sha256(base, weights, repr(self._decoding()), services.task.grader)

    def _decoding(self) -> Sampling:
        gate, student = self.services.config.gate, self.services.config.student
        return Sampling(student.max_new_tokens, gate.temperature, gate.samples)

    def _name(self, item: HeldOutItem) -> str:
        return text_sha256(item.model_dump_json(), self.services.task.prompt(item.question))


def _kept(path: Path) -> KeptAnswers | None:
    """What is kept there; None also for the forms of earlier versions."""
    try:
        return KeptAnswers.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def _data(round_: LoopRound) -> TrainedData:
    """The data as trained; of a round that an earlier version trained, the curated data."""
    manifest, trained = round_.record.need_curated().manifest, round_.record.need_trained()
    if not trained.data_sha256:
        return TrainedData(round_.round_id, DATASET, manifest.sha256, manifest.examples)
    examples = manifest.examples - trained.too_long
    return TrainedData(round_.round_id, AS_TRAINED, trained.data_sha256, examples)


def _story(round_: LoopRound, verdict: GateVerdict, lineage: Lineage) -> RoundStory:
    data, record = _data(round_), round_.record
    made = (
        ("trained on top of version", str(lineage.parent)),
        ("data as trained", f"{stored_name(data.artifact, data.sha256)}, {data.examples} examples"),
        ("data sha256", data.sha256),
        ("adapter", stored_name(ADAPTER, lineage.adapter_sha256)),
        ("adapter sha256", lineage.adapter_sha256),
        ("report with sample answers", "gate/report.html"),
    )
    return RoundStory(round_.round_id, record.skills, record.decision.reasons, made, verdict)


def _params(round_: LoopRound, settings: JsonObject) -> JsonObject:
    decision, manifest = round_.record.decision, round_.record.need_curated().manifest
    return {
        **{f"train/{name}": value for name, value in settings.items()},
        "kind": decision.kind,
        "skills": ",".join(round_.record.skills),
        "steps": decision.steps,
        "examples": manifest.examples,
        "champion": round_.record.opened.champion,
        "curated_sha256": manifest.sha256,
        "data_sha256": _data(round_).sha256,
    }
