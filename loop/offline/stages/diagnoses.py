"""Stages assessed, diagnoses and profile: which answers are wrong, what is missing in them, and what that
comes to (paper 3.2)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial

from agent.plan import Failure
from agent.profile import constrain
from graphs.filters.assess import Assessor, first_opinion
from graphs.filters.chain import FilterParts, filters
from graphs.teacher import Diagnosis
from loop.config import ConfigError
from loop.offline.bench import Bench, OfferedSkills
from loop.offline.folder import settings_sha256
from loop.offline.journal import Failed, Job
from loop.offline.records import AnswerRow, AssessedRow, DiagnosisRow
from loop.offline.stages.stage import Result, Stage
from loop.tasks.questions import Question
from streams.events import StudentOutput
from streams.files import text_sha256


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


def _judged(bench: Bench) -> list[tuple[Question, AnswerRow]]:
    """The answers on trial: the first few samples of every question."""
    rows = bench.folder.rows("answers", AnswerRow)
    at_most = bench.config.filters.diagnosed_samples
    return [(bench.data.by_id[row.question_id], row) for row in rows if row.sample < at_most]


class _NeedsTeacher(Exception):
    """A filter wants the teacher's reply, which is not there yet."""


def _assessed(bench: Bench) -> Result:
    """Two passes over the filters: what they can decide alone, then, after one round of questions to the
    teacher, the rest."""
    samples: dict[str, list[str]] = {}
    for row in bench.folder.rows("answers", AnswerRow):
        samples.setdefault(bench.data.by_id[row.question_id].question, []).append(row.response)
    judged = _judged(bench)
    first: list[AssessedRow | None] = []
    for question, answer in judged:
        first.append(_assess(bench, question, answer, samples, None))
        bench.runner.progress("assessed", len(first), len(judged))
    undecided = [pair for pair, row in zip(judged, first, strict=True) if row is None]
    replies = _replies(bench, undecided)
    rows: list[AssessedRow] = []
    for (question, answer), decided in zip(judged, first, strict=True):
        known = decided or _assess(bench, question, answer, samples, replies[question.item_id, answer.sample])
        rows += [known] if known else []
    return _assessed_result(rows)


def _assess(
    bench: Bench,
    question: Question,
    answer: AnswerRow,
    samples: Mapping[str, Sequence[str]],
    reply: Diagnosis | Failed | None,
) -> AssessedRow | None:
    """The first opinion on one answer; None when a filter needs the teacher's reply and there is none yet."""

    def diagnose() -> Diagnosis:
        if reply is None:
            raise _NeedsTeacher
        return Diagnosis(verdict="abstained") if isinstance(reply, Failed) else reply

    chain = _filters(bench, samples, len(samples[question.question]))
    try:
        opinion, name = first_opinion(chain, _output(question, answer), diagnose)
    except _NeedsTeacher:
        return None
    error = reply.error if isinstance(reply, Failed) else ""
    return AssessedRow(
        question_id=question.item_id,
        sample=answer.sample,
        verdict=opinion or "abstained",
        decided_by=name,
        error=error,
    )


def _filters(bench: Bench, samples: Mapping[str, Sequence[str]], votes: int) -> tuple[Assessor, ...]:
    """The configured filters; a single answer cannot be consistent with anything, so that filter is left out
    for it."""
    section = bench.config.filters
    parts = FilterParts(
        grade=bench.grade,
        sample=lambda question, count: samples[question][:count],
        rewards=bench.step_rewards,
        tau1=section.tau1,
        tau2=section.tau2,
        samples=votes,
        at_least=section.min_votes,
    )
    names = [name for name in section.order if votes > 1 or "consistency" not in name]
    try:
        return filters(names, parts) if names else ()
    except ValueError as exc:
        raise ConfigError(f"filters.order: {exc}") from exc


def _output(question: Question, answer: AnswerRow) -> StudentOutput:
    return StudentOutput(
        event_id=f"{question.item_id}/{answer.sample}",
        occurred_at=datetime.fromtimestamp(0, UTC),
        student="offline",
        student_version=1,
        question_id=question.item_id,
        question=question.question,
        answer=answer.response,
        gold=question.answer or None,
    )


def _replies(
    bench: Bench, undecided: Sequence[tuple[Question, AnswerRow]]
) -> dict[tuple[str, int], Diagnosis | Failed]:
    """The teacher's replies, by answer; where no skill may be named it is not asked and counts as
    abstained."""
    jobs = _diagnose_jobs(bench, undecided) if undecided else {}
    found = bench.runner.run("diagnoses", list(jobs.values()), Diagnosis) if jobs else {}
    replies: dict[tuple[str, int], Diagnosis | Failed] = {
        (question.item_id, answer.sample): Diagnosis(verdict="abstained") for question, answer in undecided
    }
    return replies | {at: found[job.key] for at, job in jobs.items()}


def _assessed_result(rows: Sequence[AssessedRow]) -> Result:
    verdicts = Counter(row.verdict for row in rows)
    figures = {
        "answers judged": len(rows),
        **{verdict: verdicts[verdict] for verdict in ("correct", "incorrect", "abstained")},
    }
    by_filter = Counter(row.decided_by for row in rows)
    return Result(
        rows, {**figures, **{f"decided by {name}": count for name, count in sorted(by_filter.items())}}
    )


def _diagnose_jobs(
    bench: Bench, answers: Sequence[tuple[Question, AnswerRow]]
) -> dict[tuple[str, int], Job[Diagnosis]]:
    """One job for each answer with known skills. Unconstrained, the teacher may name any skill of the
    subject, as in the paper."""
    offered, labels = OfferedSkills(bench.catalog_rows()), bench.labels()
    jobs: dict[tuple[str, int], Job[Diagnosis]] = {}
    for question, answer in answers:
        needed = labels.get(question.item_id, ()) if bench.config.filters.constrain else ()
        names = offered.of(question.subject)
        if needed or not bench.config.filters.constrain:
            key = text_sha256(
                "diagnose", bench.teacher_id, question.question, answer.response, "/".join(needed), *names
            )
            ask = partial(bench.teacher.diagnose, question.question, answer.response, needed, names)
            jobs[question.item_id, answer.sample] = Job(key, ask)
    return jobs


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


def _diagnoses(bench: Bench) -> Result:
    difficult = {
        (row.question_id, row.sample) for row in bench.folder.rows("assessed", AssessedRow) if row.difficult
    }
    answers = [
        (question, answer)
        for question, answer in _judged(bench)
        if (question.item_id, answer.sample) in difficult
    ]
    jobs = _diagnose_jobs(bench, answers)
    found = bench.runner.run("diagnoses", list(jobs.values()), Diagnosis)
    offered, labels = OfferedSkills(bench.catalog_rows()), bench.labels()
    rows = []
    for question, answer in answers:
        job = jobs.get((question.item_id, answer.sample))
        blank = DiagnosisRow(
            question_id=question.item_id,
            sample=answer.sample,
            verdict="abstained",
            needed=labels.get(question.item_id, ()),
            missing=(),
        )
        rows.append(
            blank
            if job is None
            else _diagnosed(blank, found[job.key], answer.response, offered, bench.config.filters.constrain)
        )
    return _diagnoses_result(rows)


def _diagnosed(
    row: DiagnosisRow, reply: Diagnosis | Failed, response: str, offered: OfferedSkills, constrained: bool
) -> DiagnosisRow:
    """What counts of a reply: skills of the catalog, among the needed ones unless told otherwise; evidence
    that is in the answer."""
    if isinstance(reply, Failed):
        return row.model_copy(update={"verdict": "failed", "error": reply.error})
    if reply.verdict != "incorrect":
        return row.model_copy(update={"verdict": reply.verdict, "usage": reply.usage})
    named = tuple(dict.fromkeys(reply.missing))
    if constrained:
        missing, discarded = constrain(named, row.needed, offered.catalog)
    else:
        missing = tuple(skill for skill in named if skill in offered.catalog)
        discarded = len(named) - len(missing)
    needed = tuple(dict.fromkeys((*row.needed, *missing)))
    evidence = reply.evidence if reply.evidence in response else ""
    known = {
        "verdict": "incorrect",
        "needed": needed,
        "missing": missing,
        "discarded": discarded,
        "evidence": evidence,
    }
    return row.model_copy(update={**known, "usage": reply.usage})


def _diagnoses_result(rows: Sequence[DiagnosisRow]) -> Result:
    verdicts = Counter(row.verdict for row in rows)
    with_skills = [row for row in rows if row.missing]
    figures: dict[str, float] = {"difficult answers": len(rows), "with missing skills": len(with_skills)}
    figures |= {f"verdict {verdict}": count for verdict, count in sorted(verdicts.items())}
    figures |= {"discarded labels": sum(row.discarded for row in rows)}
    figures["missing skills per answer"] = sum(len(row.missing) for row in rows) / max(1, len(with_skills))
    failed = [row for row in rows if row.error]
    return Result(
        rows, figures, [f"{len(failed)} diagnoses failed, first: {failed[0].error}"] if failed else []
    )


def failures_of(rows: Sequence[DiagnosisRow]) -> list[Failure]:
    """The difficult questions with missing skills, each once: the skills of all its judged samples
    together."""
    needed: dict[str, tuple[str, ...]] = {}
    missing: dict[str, dict[str, None]] = {}
    for row in rows:
        if row.missing:
            needed.setdefault(row.question_id, row.needed)
            missing.setdefault(row.question_id, {}).update(dict.fromkeys(row.missing))
    return [Failure(question_id=one, needed=needed[one], missing=tuple(missing[one])) for one in missing]


ASSESSED = Stage("assessed", _assessed_inputs, _assessed)
DIAGNOSES = Stage("diagnoses", _diagnoses_inputs, _diagnoses)
