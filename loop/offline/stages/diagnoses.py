"""Stages assessed and diagnoses: which answers are wrong, and what is missing in them (paper 3.2), by the two
steps of `graphs.monitor.diagnose`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime

from agent.plan import Failure
from graphs.filters.assess import Assessor
from graphs.filters.chain import FilterParts, filters
from graphs.labels import MemoryLabels, Needed
from graphs.monitor.diagnose import Case, MonitorContext, OutputDiagnosis, assess, explain
from loop.config import ConfigError
from loop.offline.bench import STUDENT, Bench, OfferedSkills
from loop.offline.folder import settings_sha256
from loop.offline.journal import Failed
from loop.offline.records import AnswerRow, AssessedRow, DiagnosisRow
from loop.offline.stages.stage import Result, Stage
from streams.events import StudentOutput


def _assessed_inputs(bench: Bench) -> dict[str, str]:
    inputs = {
        **bench.data_sha256,
        "answers": bench.folder.result_sha256("answers"),
        "settings": settings_sha256(bench.config.filters),
    }
    if any("prm" in name for name in bench.config.filters.order):
        inputs["rewards"] = bench.rewards_id
    if any("teacher" in name for name in bench.config.filters.order):
        inputs |= {
            "teacher": bench.teacher_id,
            **{stage: bench.folder.result_sha256(stage) for stage in ("catalog", "labels")},
        }
    return inputs


def _context(bench: Bench) -> MonitorContext:
    """The run's teacher and filters; a question's labels are those of the stage labels, and nobody is asked
    again."""
    offered, labels, questions = OfferedSkills(bench.catalog_rows()), bench.labels(), bench.data.by_id
    return MonitorContext(
        bench.teacher,
        offered.catalog,
        _filters(bench),
        MemoryLabels({item.question: labels.get(item.item_id, ()) for item in bench.data.validation}),
        offered=lambda output: offered.of(questions[output.question_id or ""].subject),
        constrain=bench.config.filters.constrain,
    )


def _filters(bench: Bench) -> tuple[Assessor, ...]:
    """The configured filters. The samples that vote on an answer are all answers to its question."""
    samples: dict[str | None, list[str]] = {}
    for row in bench.folder.rows("answers", AnswerRow):
        samples.setdefault(row.question_id, []).append(row.response)
    parts = FilterParts(
        grade=bench.grade,
        sample=lambda output, _: samples[output.question_id],
        rewards=bench.step_rewards,
        settings=bench.config.filters,
    )
    try:
        return filters(bench.config.filters.order, parts)
    except ValueError as exc:
        raise ConfigError(f"filters.order: {exc}") from exc


def _judged(bench: Bench) -> dict[tuple[str, int], StudentOutput]:
    """The answers on trial, by question and sample: the first few samples of every question."""
    at_most = bench.config.filters.diagnosed_samples
    return {
        (row.question_id, row.sample): _output(bench, row)
        for row in bench.folder.rows("answers", AnswerRow)
        if row.sample < at_most
    }


def _output(bench: Bench, row: AnswerRow) -> StudentOutput:
    question = bench.data.by_id[row.question_id]
    return StudentOutput(
        event_id=f"{row.question_id}/{row.sample}",
        occurred_at=datetime.fromtimestamp(0, UTC),
        student=STUDENT,
        student_version=1,
        question_id=question.item_id,
        question=question.question,
        answer=row.response,
        gold=question.answer or None,
    )


def _assessed(bench: Bench) -> Result:
    context, judged = _context(bench), _judged(bench)
    cases = bench.runner.each("assessed", list(judged.values()), lambda output: assess(output, context))
    rows = [_assessed_row(at, case) for at, case in zip(judged, cases, strict=True)]
    verdicts, by_filter = Counter(row.verdict for row in rows), Counter(row.decided_by for row in rows)
    figures = {
        "answers judged": len(rows),
        **{verdict: verdicts[verdict] for verdict in ("correct", "incorrect", "abstained")},
        **{f"decided by {name}": count for name, count in sorted(by_filter.items())},
    }
    return Result(rows, figures, _failures(rows, "answers could not be judged"))


def _assessed_row(at: tuple[str, int], case: Case | Failed) -> AssessedRow:
    row = AssessedRow(question_id=at[0], sample=at[1], verdict="abstained", decided_by="none")
    if isinstance(case, Failed):
        return row.model_copy(update={"error": case.error})
    return row.model_copy(update={"verdict": case.opinion or "abstained", "decided_by": case.decided_by})


def _failures(rows: Sequence[AssessedRow] | Sequence[DiagnosisRow], what: str) -> list[str]:
    errors = [row.error for row in rows if row.error]
    return [f"{len(errors)} {what}, first: {errors[0]}"] if errors else []


def _diagnoses_inputs(bench: Bench) -> dict[str, str]:
    earlier = {
        stage: bench.folder.result_sha256(stage) for stage in ("catalog", "labels", "answers", "assessed")
    }
    return {
        **bench.data_sha256,
        **earlier,
        "teacher": bench.teacher_id,
        "settings": settings_sha256(bench.config.filters),
    }


def _difficult(bench: Bench) -> list[Case]:
    judged, labels = _judged(bench), bench.labels()
    return [
        Case(
            judged[row.question_id, row.sample],
            Needed(labels.get(row.question_id, ())),
            "incorrect",
            row.decided_by,
        )
        for row in bench.folder.rows("assessed", AssessedRow)
        if row.difficult
    ]


def _diagnoses(bench: Bench) -> Result:
    context, cases = _context(bench), _difficult(bench)
    results = bench.runner.each("diagnoses", cases, lambda case: explain(case, context))
    rows = [_diagnosis_row(case, result) for case, result in zip(cases, results, strict=True)]
    verdicts = Counter(row.verdict for row in rows)
    with_skills = [row for row in rows if row.missing]
    figures: dict[str, float] = {"difficult answers": len(rows), "with missing skills": len(with_skills)}
    figures |= {f"verdict {verdict}": count for verdict, count in sorted(verdicts.items())}
    figures |= {"discarded labels": sum(row.discarded for row in rows)}
    figures["missing skills per answer"] = sum(len(row.missing) for row in rows) / max(1, len(with_skills))
    return Result(rows, figures, _failures(rows, "diagnoses failed"))


def _diagnosis_row(case: Case, result: OutputDiagnosis | Failed) -> DiagnosisRow:
    question_id, sample = case.output.event_id.rsplit("/", 1)
    row = DiagnosisRow(
        question_id=question_id, sample=int(sample), verdict="failed", needed=case.needed.skills, missing=()
    )
    if isinstance(result, Failed):
        return row.model_copy(update={"error": result.error})
    kept = result.model_dump(include={"needed", "missing", "evidence", "discarded"})
    return row.model_copy(update={**kept, "verdict": result.said, "usage": result.usage})


def failures_of(rows: Sequence[DiagnosisRow]) -> list[Failure]:
    """The difficult questions with missing skills, each once: the skills of all its judged samples
    together."""
    needed: dict[str, tuple[str, ...]] = {}
    missing: dict[str, dict[str, None]] = {}
    for row in rows:
        if row.missing:
            needed.setdefault(row.question_id, row.needed)
            missing.setdefault(row.question_id, {}).update(dict.fromkeys(row.missing))
    return [Failure(question_id=key, needed=needed[key], missing=tuple(missing[key])) for key in missing]


ASSESSED = Stage("assessed", _assessed_inputs, _assessed)
DIAGNOSES = Stage("diagnoses", _diagnoses_inputs, _diagnoses)
