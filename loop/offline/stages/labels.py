"""Stages catalog and labels: which skills there are, and which question needs which (paper section 3.1)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from graphs.labels import Needed, checked
from loop.offline.bench import Bench, OfferedSkills
from loop.offline.folder import settings_sha256
from loop.offline.journal import Failed
from loop.offline.stages.catalog import catalogued
from loop.offline.stages.stage import Result, Stage
from loop.tasks.questions import Question, subject_key
from loop.tasks.records import CatalogRow, LabelRow
from streams.files import DataError, file_sha256, read_rows


def _catalog_inputs(bench: Bench) -> dict[str, str]:
    config = bench.config
    inputs = {
        **bench.data_sha256,
        "settings": settings_sha256(config.catalog, config.seed, config.data.validation_questions),
    }
    if config.catalog.file is not None and config.catalog.source == "file":
        inputs["file"] = file_sha256(config.catalog.file)
    if config.catalog.source == "teacher":
        inputs["teacher"] = bench.teacher_id
    return inputs


def _catalog(bench: Bench) -> Result:
    section = bench.config.catalog
    if section.source == "file" and section.file is not None:
        rows = read_rows(section.file, CatalogRow)
    elif section.source == "teacher":
        rows = _taught_catalog(bench)
    else:
        rows = _given_catalog([*bench.data.pool, *bench.data.validation])
    if not rows:
        raise DataError(
            "the catalog is empty: the data has no labels in its field skills; "
            "set catalog.source to 'teacher' or 'file'"
        )
    subjects = Counter(subject for row in rows for subject in row.subjects)
    return Result(
        rows,
        {
            "skills": len(rows),
            **{f"skills of {subject}": count for subject, count in sorted(subjects.items())},
        },
    )


def _given_catalog(questions: Sequence[Question]) -> list[CatalogRow]:
    subjects: dict[str, set[str]] = {}
    for item in questions:
        for skill in item.skills:
            subjects.setdefault(skill, set()).update({subject_key(item.subject)} - {""})
    return [CatalogRow(skill=skill, subjects=tuple(sorted(subjects[skill]))) for skill in sorted(subjects)]


def _taught_catalog(bench: Bench) -> list[CatalogRow]:
    """The catalog graph's skills, subject by subject. Its labels are in the teacher's memory, where the stage
    labels finds them."""
    done = catalogued(bench)
    subjects: dict[str, list[str]] = {}
    for subject, catalog in done.subjects.items():
        for name in catalog.names:
            subjects.setdefault(name, []).extend([subject] if subject else [])
    described = {skill.name: skill.description for skill in done.catalog.skills}
    return [
        CatalogRow(skill=name, description=described[name], subjects=tuple(sorted(subjects[name])))
        for name in sorted(subjects)
    ]


def _labels_inputs(bench: Bench) -> dict[str, str]:
    config = bench.config
    inputs = {**bench.data_sha256, "catalog": bench.folder.result_sha256("catalog")}
    inputs["settings"] = settings_sha256(config.catalog.labels, config.seed, config.data.validation_questions)
    return inputs if config.catalog.labels == "given" else {**inputs, "teacher": bench.teacher_id}


def _labels(bench: Bench) -> Result:
    offered = OfferedSkills(bench.catalog_rows())
    asked = _to_ask(bench, offered)

    def ask(item: Question) -> Needed:
        return checked(bench.teacher.label(item.question, offered.of(item.subject)), offered.catalog)

    replies = bench.runner.each("labels", asked, ask)
    told = {item.item_id: reply for item, reply in zip(asked, replies, strict=True)}
    rows = []
    for part, of_part in (("pool", bench.data.pool), ("validation", bench.data.validation)):
        for item in of_part:
            row = _row(item, told.get(item.item_id, Needed(_given(item, offered))))
            source = "none" if not row.skills else "teacher" if item.item_id in told else "given"
            rows.append(row.model_copy(update={"part": part, "source": source}))
    return _labelled(rows)


def _to_ask(bench: Bench, offered: OfferedSkills) -> list[Question]:
    """The questions that the teacher has to label."""
    policy = bench.config.catalog.labels
    return [
        item
        for item in (*bench.data.pool, *bench.data.validation)
        if policy == "teacher" or (policy == "missing" and not _given(item, offered))
    ]


def _row(question: Question, told: Needed | Failed) -> LabelRow:
    row = LabelRow(question_id=question.item_id, part="pool", skills=(), source="none")
    if isinstance(told, Failed):
        return row.model_copy(update={"error": told.error})
    return row.model_copy(update={"skills": told.skills, "discarded": told.discarded})


def _labelled(rows: Sequence[LabelRow]) -> Result:
    none = sum(not row.skills for row in rows)
    figures: dict[str, float] = {
        "questions": len(rows),
        "unlabelled": none,
        "discarded": sum(row.discarded for row in rows),
    }
    figures["skills per question"] = sum(len(row.skills) for row in rows) / max(1, len(rows) - none)
    failed = [row for row in rows if row.error]
    notes = [f"{len(failed)} questions could not be labelled, first: {failed[0].error}"] if failed else []
    return Result(rows, figures, notes)


def _given(item: Question, offered: OfferedSkills) -> tuple[str, ...]:
    return tuple(skill for skill in item.skills if skill in offered.catalog)


CATALOG = Stage("catalog", _catalog_inputs, _catalog)
LABELS = Stage("labels", _labels_inputs, _labels)
