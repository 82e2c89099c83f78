"""How well the profile finds the missing skills when the teacher errs or abstains (the paper's agrees with
itself 70 % of the time).

The shipped student answers drifted traffic; its answers are diagnosed by symbolic teachers of different
reliability, with labels constrained to the needed skills (as the loop does) and, as the alternative in the
same run, taken as they come. Found = lower 5 % bound of the miss rate above the policy's threshold, share
above its minimum.

    python -m benchmarks.robustness [--seeds 5] [--json FILE]
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from agent.posterior import ReadSettings, read
from agent.profile import Observation, fold
from graphs.filters.assess import TeacherVerdict
from graphs.monitor.diagnose import MonitorContext
from graphs.monitor.graph import build_monitor, diagnose_outputs
from loop.config import Config, load
from loop.demo.report import truly_missing
from loop.demo.stream import START, schedule
from loop.doors import open_student
from loop.tasks.world.task import demo_task
from loop.tasks.world.teacher import SymbolicTeacher
from loop.tasks.world.traffic import Traffic
from serving.engine import Engine, Sampling
from streams.events import StudentOutput
from training.evaluate import evaluate

WATCHED = (200, 400, 800)
TEACHERS = ((0.0, 0.0), (0.15, 0.0), (0.30, 0.0), (0.0, 0.30), (0.30, 0.30))
READ = ReadSettings(window_buckets=None, half_life_buckets=None)


def answers_of(engine: Engine, config: Config, seed: int, phase: int) -> list[StudentOutput]:
    """The student's answers to the first questions of one drifted phase."""
    start = schedule(config)[phase].start
    traffic = Traffic(seed, schedule(config))
    asked = [traffic.question(start + index) for index in range(max(WATCHED))]
    answers = engine.generate(
        [problem.question for _, problem in asked], 1, Sampling(max_new_tokens=config.student.max_new_tokens)
    )
    return [
        StudentOutput(
            event_id=key,
            occurred_at=START,
            student="demo",
            student_version=1,
            question=problem.question,
            answer=answer[0],
        )
        for (key, problem), answer in zip(asked, answers, strict=True)
    ]


def found(observations: Sequence[Observation], config: Config) -> set[str]:
    """The skills that the policy would call missing."""
    profile = read(fold(observations), "demo", 1, 0, READ)
    return {
        row.skill
        for row in profile.skills
        if row.low > config.policy.miss_threshold and row.share >= config.policy.min_share
    }


def free_observation(
    seen: StudentOutput, needed: tuple[str, ...], teacher: SymbolicTeacher, names: Sequence[str]
) -> Observation | None:
    """The alternative: a label counts wherever the teacher puts it, as if the question had needed that
    skill."""
    told = teacher.diagnose(seen.question, seen.answer, needed, names)
    if told.verdict == "abstained" or not needed:
        return None
    every = tuple(dict.fromkeys((*needed, *told.missing)))
    return Observation("demo", 1, 0, every, told.missing, told.verdict == "incorrect")


def main(seeds: int = 5, json_file: Annotated[Path | None, typer.Option("--json")] = None) -> None:
    """Print precision and recall per teacher and number of watched answers."""
    config = load(Path("configs/demo.toml"), {"SKILLLOOP_DEMO__DRIFT": "fixed"})
    student = open_student(config.student.base, config.engine)
    task, engine = demo_task(config, student, SymbolicTeacher(seed=config.seed)), student.engine
    engine.load(1, None)
    singles = [item for item in task.held_out if item.stratum.startswith("skill:")]
    measured = evaluate(
        lambda prompts: [a[0] for a in engine.generate(prompts, 1)],
        lambda i, a: task.grade(i.answer, a),
        singles,
    )
    graph = build_monitor()
    rows: list[dict[str, Any]] = []
    cases = [(seed, phase) for seed in range(seeds) for phase in (1, 2)]
    for seed, phase in track(cases, description="streams"):
        weights = schedule(config)[phase].mixture.weights
        asked = {
            skill
            for skill, weight in weights.items()
            if weight / sum(weights.values()) >= config.policy.min_share
        }
        truth = set(truly_missing(config, measured.accuracy_by_skill())) & asked
        outputs = answers_of(engine, config, seed, phase)
        for errors, abstains in TEACHERS:
            teacher = SymbolicTeacher(error_rate=errors, abstain_rate=abstains, seed=seed)
            results = diagnose_outputs(
                graph, outputs, MonitorContext(teacher, task.catalog, (TeacherVerdict(),))
            )
            snapped = [
                None
                if r.verdict == "abstained"
                else Observation("demo", 1, 0, r.needed, r.missing, r.verdict == "incorrect")
                for r in results
            ]
            free = [
                free_observation(o, r.needed, teacher, task.catalog.names)
                for o, r in zip(outputs, results, strict=True)
            ]
            for label, seen in (("constrained", snapped), ("free", free)):
                for watched in WATCHED:
                    got = found([observed for observed in seen[:watched] if observed is not None], config)
                    hit = len(got & truth)
                    row = {"errors": errors, "abstains": abstains, "labels": label, "watched": watched}
                    rows.append(
                        {**row, "precision": hit / len(got) if got else 1.0, "recall": hit / len(truth)}
                    )
    summary = _summary(rows)
    _show(summary)
    if json_file is not None:
        json_file.write_text(json.dumps(summary, indent=1))


def _summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    keys = ("errors", "abstains", "labels", "watched")
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    means = {
        key: {name: sum(row[name] for row in group) / len(group) for name in ("precision", "recall")}
        for key, group in groups.items()
    }
    return [
        {**dict(zip(keys, key, strict=True)), "streams": len(groups[key]), **mean}
        for key, mean in means.items()
    ]


def _show(summary: Sequence[dict[str, Any]]) -> None:
    table = Table(title="Missing skills found: mean precision / recall over streams", title_justify="left")
    for name in ("wrong labels", "abstentions", "labels", *(f"{watched} answers" for watched in WATCHED)):
        table.add_column(name)
    keys = ("errors", "abstains", "labels", "watched")
    cells = {
        tuple(row[key] for key in keys): f"{row['precision']:.2f} / {row['recall']:.2f}" for row in summary
    }
    for errors, abstains in TEACHERS:
        for label in ("constrained", "free"):
            values = (cells[errors, abstains, label, watched] for watched in WATCHED)
            table.add_row(f"{errors:.0%}", f"{abstains:.0%}", label, *values)
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
