"""The demo's figures: what was truly missing, what was found, and what the rounds brought, against exact
ground truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agent.budget import Usage
from agent.items import HeldOutItem, JsonObject
from loop.config import Config
from loop.demo.stream import schedule, served
from loop.tasks.world.task import items_of
from loop.tasks.world.world import mixture_items
from loop.workers.record import LoopRound
from loop.workers.services import Services
from serving.engine import Sampling
from streams.log import EventLog
from streams.state.ledger import entries
from training.evaluate import Evaluation, evaluate

MASTERED = 0.9
SERVED_WINDOW = 400


@dataclass(frozen=True)
class Report:
    """`figures` is what `--json` writes; `rows` one line per skill: (skill, group, before, after)."""

    figures: JsonObject
    rows: tuple[tuple[str, str, float, float], ...]


def exam_items(config: Config) -> tuple[HeldOutItem, ...]:
    """Held-out items that neither training nor the gate has seen: skills, original and drifted mixtures, out
    of distribution."""
    demo = config.demo
    drifted = [
        item
        for phase in schedule(config)[1:]
        for item in mixture_items("exam", phase.name, phase.mixture, demo.exam_mix // 2)
    ]
    return (*items_of("exam", demo), *drifted)


def examine(services: Services, version: int, items: Sequence[HeldOutItem]) -> Evaluation:
    """One version's exam."""
    services.load(version)
    sampling = Sampling(max_new_tokens=services.config.student.max_new_tokens)
    return evaluate(
        lambda prompts: [answers[0] for answers in services.engine.generate(prompts, version, sampling)],
        lambda item, answer: bool(services.task.grade(item.answer, answer)),
        items,
    )


def make_report(services: Services, log: EventLog) -> Report:
    """Examine the shipped and the final student, and put the figures together."""
    config, items = services.config, exam_items(services.config)
    first, champion = services.registry.versions()[0].version, services.registry.champion().version
    before = examine(services, first, items)
    after = before if champion == first else examine(services, champion, items)
    was, now = before.accuracy_by_skill(), after.accuracy_by_skill()
    missing = truly_missing(config, was)
    mastered = [skill for skill in was if was[skill] >= MASTERED]
    rounds = [_round_row(round_) for round_ in services.rounds.list(services.student)]
    targeted = sorted({skill for row in rounds for skill in row["skills"]})
    hits = len(set(targeted) & set(missing))
    figures: JsonObject = {
        "rounds": rounds,
        "skills_truly_missing": missing,
        "skills_found": targeted,
        "precision": hits / len(targeted) if targeted else 0.0,
        "recall": hits / len(missing) if missing else 1.0,
    }
    strata = {
        "shifted": {f"mix:{phase.name}": 1.0 for phase in schedule(config)[1:]},
        "missing": {f"skill:{skill}": 1.0 for skill in missing},
        "original": {"mix:original": 1.0},
        "mastered": {f"skill:{skill}": 1.0 for skill in mastered},
        "ood": {"ood": 1.0},
    }
    for name, weights in strata.items():
        figures[f"{name}_accuracy_before"] = before.mixture(weights) if weights else None
        figures[f"{name}_accuracy_after"] = after.mixture(weights) if weights else None
    figures["worst_skill_loss"] = max(0.0, *(was[skill] - now[skill] for skill in was))
    figures["worst_mastered_loss"] = max((0.0, *(was[skill] - now[skill] for skill in mastered)))
    figures.update(_served_figures(services, log))
    figures.update(_costs(services))
    figures.update(champion_version=champion, seed=config.seed)
    rows = tuple(
        (
            skill,
            "missing" if skill in missing else "mastered" if skill in mastered else "",
            was[skill],
            now[skill],
        )
        for skill in was
    )
    return Report(figures, rows)


def truly_missing(config: Config, accuracy: dict[str, float]) -> list[str]:
    """Ground truth by the policy's own definition: missed more often than the threshold, and asked for often
    enough after a shift."""
    shares = [phase.mixture.weights for phase in schedule(config)[1:]]
    asked = {
        skill
        for share in shares
        for skill, weight in share.items()
        if weight / sum(share.values()) >= config.policy.min_share
    }
    return sorted(skill for skill in asked if 1 - accuracy[skill] > config.policy.miss_threshold)


def _round_row(round_: LoopRound) -> JsonObject:
    decision, curated = round_.record.decision, round_.record.curated
    return {
        "id": round_.round_id,
        "kind": decision.kind,
        "skills": list(round_.record.skills),
        "examples": curated.manifest.examples if curated else 0,
        "reasons": list(decision.reasons),
        "promoted": round_.state == "promoted",
    }


def _served_figures(services: Services, log: EventLog) -> dict[str, float]:
    """Accuracy of the first and the last answers that were really served on drifted traffic."""
    start = services.config.demo.first_shift
    right = [bool(services.task.grade(event.gold or "", event.answer)) for event in served(log)][start:]
    window = min(SERVED_WINDOW, max(1, len(right) // 2))
    if not right:
        return {"served_accuracy_first": 0.0, "served_accuracy_last": 0.0}
    return {
        "served_accuracy_first": sum(right[:window]) / window,
        "served_accuracy_last": sum(right[-window:]) / window,
    }


def _costs(services: Services) -> dict[str, float]:
    """What the run cost, from the ledger and the rounds' records."""
    usage = sum((entry.usage for entry in entries(services.store, services.student)), Usage())
    rounds = services.rounds.list(services.student)
    trained = sum(made.tokens for round_ in rounds if (made := round_.record.trained))
    tokens = usage.prompt_tokens + usage.completion_tokens
    return {
        "teacher_calls": usage.calls,
        "teacher_tokens": tokens,
        "teacher_usd": usage.usd,
        "train_tokens": trained,
    }
