"""Stages assessed, diagnoses and profile: which answers are wrong, what is missing in them, and what that comes to (paper 3.2)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial

from agent.dataplan import Failure
from agent.profile import ALL, Observation, constrain, fold
from graphs.teacher import Diagnosis
from loop.offline.bench import Bench, OfferedSkills
from loop.offline.data import Question
from loop.offline.filters import Case, DifficultyFilter, consistency_filter, gold_filter, prm_filter
from loop.offline.folder import settings_sha256
from loop.offline.grading import canonical_answer
from loop.offline.journal import Failed, Job
from loop.offline.jsonl import DataError, text_sha256
from loop.offline.records import AnswerRow, AssessedRow, DiagnosisRow, ProfileRow
from loop.offline.stage import Result, Stage


def _assessed_inputs(bench: Bench) -> dict[str, str]:
    inputs = {**bench.data_sha256, "answers": bench.folder.result_sha256("answers"), "settings": settings_sha256(bench.config.filters)}
    if "teacher" in bench.config.filters.order:
        inputs |= {"teacher": bench.teacher_id, **{stage: bench.folder.result_sha256(stage) for stage in ("catalog", "labels")}}
    return inputs


def _judged(bench: Bench) -> list[tuple[Question, AnswerRow]]:
    """The answers on trial: the first few samples of every question."""
    rows = bench.folder.rows("answers", AnswerRow)
    at_most = bench.config.filters.diagnosed_samples
    return [(bench.data.by_id[row.question_id], row) for row in rows if row.sample < at_most]


def _assessed(bench: Bench) -> Result:
    order = bench.config.filters.order
    samples: dict[str, list[str]] = {}
    for row in bench.folder.rows("answers", AnswerRow):
        samples.setdefault(row.question_id, []).append(row.response)
    free = [(name, _filter(bench, name)) for name in order if name != "teacher"]
    rows: dict[tuple[str, int], AssessedRow] = {}
    for question, answer in _judged(bench):
        case = Case(question.question, question.answer, answer.response, samples[question.item_id])
        rows[question.item_id, answer.sample] = _first_opinion(free, case, answer)
    if "teacher" in order:
        _ask_teacher(bench, rows)
    return _assessed_result(list(rows.values()))


def _filter(bench: Bench, name: str) -> DifficultyFilter:
    section = bench.config.filters
    if name == "gold":
        return gold_filter(bench.grade)
    if name == "consistency":
        return consistency_filter(section.min_votes, canonical_answer)
    if bench.step_rewards is None:
        raise DataError("the filter prm needs a process reward model in filters.prm")
    return prm_filter(bench.step_rewards, section.tau1, section.tau2)


def _first_opinion(filters: Sequence[tuple[str, DifficultyFilter]], case: Case, answer: AnswerRow) -> AssessedRow:
    for name, assess in filters:
        opinion = assess(case)
        if opinion is not None:
            return AssessedRow(question_id=answer.question_id, sample=answer.sample, verdict=opinion, decided_by=name)
    return AssessedRow(question_id=answer.question_id, sample=answer.sample, verdict="abstained", decided_by="none")


def _ask_teacher(bench: Bench, rows: dict[tuple[str, int], AssessedRow]) -> None:
    """The teacher's verdict where the filters before it have no opinion; its reply is the diagnosis too."""
    undecided = [(q, a) for q, a in _judged(bench) if rows[q.item_id, a.sample].verdict == "abstained"]
    jobs = _diagnose_jobs(bench, undecided)
    found = bench.runner.run("diagnoses", list(jobs.values()), Diagnosis)
    for at, job in jobs.items():
        reply = found[job.key]
        known = {"error": reply.error} if isinstance(reply, Failed) else {"verdict": reply.verdict, "decided_by": "teacher"}
        rows[at] = rows[at].model_copy(update=known)


def _assessed_result(rows: Sequence[AssessedRow]) -> Result:
    verdicts = Counter(row.verdict for row in rows)
    figures = {"answers judged": len(rows), **{verdict: verdicts[verdict] for verdict in ("correct", "incorrect", "abstained")}}
    by_filter = Counter(row.decided_by for row in rows)
    return Result(rows, {**figures, **{f"decided by {name}": count for name, count in sorted(by_filter.items())}})


def _diagnose_jobs(bench: Bench, answers: Sequence[tuple[Question, AnswerRow]]) -> dict[tuple[str, int], Job[Diagnosis]]:
    """One job for each answer with known skills. Unconstrained, the teacher may name any skill of the subject, as in the paper."""
    offered, labels = OfferedSkills(bench.catalog_rows()), bench.labels()
    jobs: dict[tuple[str, int], Job[Diagnosis]] = {}
    for question, answer in answers:
        needed = labels.get(question.item_id, ()) if bench.config.filters.constrain else ()
        names = offered.of(question.subject)
        if needed or not bench.config.filters.constrain:
            key = text_sha256("diagnose", bench.teacher_id, question.question, answer.response, "/".join(needed), *names)
            ask = partial(bench.teacher.diagnose, question.question, answer.response, needed, names)
            jobs[question.item_id, answer.sample] = Job(key, ask)
    return jobs


def _diagnoses_inputs(bench: Bench) -> dict[str, str]:
    earlier = {stage: bench.folder.result_sha256(stage) for stage in ("catalog", "labels", "answers", "assessed")}
    return {**bench.data_sha256, **earlier, "teacher": bench.teacher_id, "settings": settings_sha256(bench.config.filters)}


def _diagnoses(bench: Bench) -> Result:
    difficult = {(row.question_id, row.sample) for row in bench.folder.rows("assessed", AssessedRow) if row.difficult}
    answers = [(question, answer) for question, answer in _judged(bench) if (question.item_id, answer.sample) in difficult]
    jobs = _diagnose_jobs(bench, answers)
    found = bench.runner.run("diagnoses", list(jobs.values()), Diagnosis)
    offered, labels = OfferedSkills(bench.catalog_rows()), bench.labels()
    rows = []
    for question, answer in answers:
        job = jobs.get((question.item_id, answer.sample))
        blank = DiagnosisRow(
            question_id=question.item_id, sample=answer.sample, verdict="abstained", needed=labels.get(question.item_id, ()), missing=()
        )
        rows.append(blank if job is None else _diagnosed(blank, found[job.key], answer.response, offered, bench.config.filters.constrain))
    return _diagnoses_result(rows)


def _diagnosed(row: DiagnosisRow, reply: Diagnosis | Failed, response: str, offered: OfferedSkills, constrained: bool) -> DiagnosisRow:
    """What counts of a reply: skills of the catalog, among the needed ones unless told otherwise; evidence that is in the answer."""
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
    known = {"verdict": "incorrect", "needed": needed, "missing": missing, "discarded": discarded, "evidence": evidence}
    return row.model_copy(update={**known, "usage": reply.usage})


def _diagnoses_result(rows: Sequence[DiagnosisRow]) -> Result:
    verdicts = Counter(row.verdict for row in rows)
    with_skills = [row for row in rows if row.missing]
    figures: dict[str, float] = {"difficult answers": len(rows), "with missing skills": len(with_skills)}
    figures |= {f"verdict {verdict}": count for verdict, count in sorted(verdicts.items())}
    figures |= {"discarded labels": sum(row.discarded for row in rows)}
    figures["missing skills per answer"] = sum(len(row.missing) for row in rows) / max(1, len(with_skills))
    failed = [row for row in rows if row.error]
    return Result(rows, figures, [f"{len(failed)} diagnoses failed, first: {failed[0].error}"] if failed else [])


def failures_of(rows: Sequence[DiagnosisRow]) -> list[Failure]:
    """The difficult questions with missing skills, each once: the skills of all its judged samples together."""
    needed: dict[str, tuple[str, ...]] = {}
    missing: dict[str, dict[str, None]] = {}
    for row in rows:
        if row.missing:
            needed.setdefault(row.question_id, row.needed)
            missing.setdefault(row.question_id, {}).update(dict.fromkeys(row.missing))
    return [Failure(question_id=one, needed=needed[one], missing=tuple(missing[one])) for one in missing]


def _profile_inputs(bench: Bench) -> dict[str, str]:
    return {stage: bench.folder.result_sha256(stage) for stage in ("labels", "assessed", "diagnoses")}


def _profile(bench: Bench) -> Result:
    diagnosed = {(row.question_id, row.sample): row for row in bench.folder.rows("diagnoses", DiagnosisRow)}
    labels = bench.labels()
    seen = [
        _observation(row, diagnosed.get((row.question_id, row.sample)), labels.get(row.question_id, ()))
        for row in bench.folder.rows("assessed", AssessedRow)
        if row.verdict != "abstained"
    ]
    table = {key.skill: counts for key, counts in fold(seen).items()}
    answers = table.pop(ALL).needed if ALL in table else 0
    pool = Counter(skill for item in bench.items().values() for skill in item.skills)
    rows = [
        ProfileRow(skill=skill, needed=needed, missing=missing, miss_rate=missing / needed, share=needed / answers, pool=pool[skill])
        for skill, (needed, missing) in sorted(table.items(), key=lambda pair: (-pair[1].missing, pair[0]))
    ]
    figures = {"answers": answers, "skills seen": len(rows), "skills missing": sum(row.missing > 0 for row in rows)}
    return Result(rows, figures, _without_pool(rows))


def _observation(row: AssessedRow, diagnosis: DiagnosisRow | None, labels: tuple[str, ...]) -> Observation:
    needed = diagnosis.needed if diagnosis else labels
    missing = diagnosis.missing if diagnosis else ()
    return Observation("offline", 1, 0, needed, missing, incorrect=row.difficult)


def _without_pool(rows: Sequence[ProfileRow]) -> list[str]:
    empty = [row.skill for row in rows if row.missing and not row.pool]
    return [f"{len(empty)} missing skills have no training question: {', '.join(empty[:5])}"] if empty else []


def profile_counts(rows: Sequence[ProfileRow]) -> Mapping[str, int]:
    """The paper's profile: misses by skill."""
    return {row.skill: row.missing for row in rows if row.missing}


ASSESSED = Stage("assessed", _assessed_inputs, _assessed)
DIAGNOSES = Stage("diagnoses", _diagnoses_inputs, _diagnoses)
PROFILE = Stage("profile", _profile_inputs, _profile)
