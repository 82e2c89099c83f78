"""Stage profile: how often each skill was needed and how often it was missing (paper section 3.2, with
opportunities counted)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from agent.profile import ALL, Observation, fold
from loop.offline.bench import STUDENT, Bench
from loop.offline.records import AssessedRow, DiagnosisRow, ProfileRow
from loop.offline.stages.stage import Result, Stage


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
        ProfileRow(
            skill=skill,
            needed=needed,
            missing=missing,
            miss_rate=missing / needed,
            share=needed / answers,
            pool=pool[skill],
        )
        for skill, (needed, missing) in sorted(table.items(), key=lambda pair: (-pair[1].missing, pair[0]))
    ]
    figures = {
        "answers": answers,
        "skills seen": len(rows),
        "skills missing": sum(row.missing > 0 for row in rows),
    }
    return Result(rows, figures, _without_pool(rows))


def _observation(row: AssessedRow, diagnosis: DiagnosisRow | None, labels: tuple[str, ...]) -> Observation:
    needed = diagnosis.needed if diagnosis else labels
    missing = diagnosis.missing if diagnosis else ()
    return Observation(STUDENT, 1, 0, needed, missing, incorrect=row.difficult)


def _without_pool(rows: Sequence[ProfileRow]) -> list[str]:
    empty = [row.skill for row in rows if row.missing and not row.pool]
    return [f"{len(empty)} missing skills have no training question: {', '.join(empty[:5])}"] if empty else []


PROFILE = Stage("profile", _profile_inputs, _profile)
