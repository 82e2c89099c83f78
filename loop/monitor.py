"""The monitor worker: student outputs in, diagnoses and profile out, one transaction a batch, then the policy."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from agent.budget import Usage
from agent.catalog import SkillCatalog
from agent.profile import Observation, ProfileTable, bucket_of, fold
from graphs.monitor import MonitorContext, OutputDiagnosis, build_monitor, diagnose_outputs
from graphs.teacher import Verdict
from loop.config import MonitorSection
from loop.folding import watermarks
from loop.ledger import entry_row
from streams import tables
from streams.clock import Clock
from streams.codec import encode
from streams.consume import Effects
from streams.events import Diagnosed, Event, StudentOutput, derived_id
from streams.store import StateStore

GROUP = "monitor"


class StoredLabels:
    """The label cache in the state store: a question's needed skills, once per text and catalog."""

    def __init__(self, store: StateStore, catalog: SkillCatalog) -> None:
        self._store = store
        self._catalog = hashlib.sha256("\n".join(catalog.names).encode()).hexdigest()
        self._memory: dict[str, tuple[str, ...]] = {}

    def get(self, question: str) -> tuple[str, ...] | None:
        """The labels of a question, or None when the teacher was never asked."""
        if question in self._memory:
            return self._memory[question]
        table = tables.labels.c
        query = sa.select(table.skills).where(table.question_hash == _digest(question), table.catalog_hash == self._catalog)
        with self._store.transaction(read_only=True) as connection:
            found = connection.execute(query).scalar_one_or_none()
        return None if found is None else tuple(json.loads(found))

    def put(self, question: str, skills: tuple[str, ...]) -> None:
        """Remember labels; they reach the database with `flush`."""
        self._memory[question] = skills

    def flush(self) -> None:
        """Write what was learnt since the last time, in one transaction."""
        rows = [
            {"question_hash": _digest(question), "catalog_hash": self._catalog, "skills": json.dumps(skills)}
            for question, skills in self._memory.items()
        ]
        with self._store.transaction() as connection:
            self._store.insert_new(tables.labels, rows, connection)
        self._memory.clear()


def _digest(question: str) -> str:
    return hashlib.sha256(question.encode(errors="surrogatepass")).hexdigest()


def observation(event: Diagnosed) -> Observation | None:
    """What a diagnosis adds to the profile; an abstention adds nothing."""
    if event.verdict == "abstained":
        return None
    incorrect = event.verdict == "incorrect"
    return Observation(event.student, event.student_version, event.bucket, event.needed, event.missing, incorrect)


def fold_diagnoses(events: Iterable[Diagnosed]) -> ProfileTable:
    """The profile of some diagnoses; each event id must occur once."""
    return fold(seen for event in events if (seen := observation(event)) is not None)


class DiagnoseHandler:
    """Turns outputs into effects for the consume loop; no side effect but the label cache. Raises what stops a batch.

    `threads` answers are diagnosed at once. `book`: enter the teacher's costs in the ledger, for one that does not do so itself.
    """

    def __init__(
        self, context: MonitorContext, labels: StoredLabels, settings: MonitorSection, clock: Clock, threads: int, book: bool = True
    ) -> None:
        self._graph = build_monitor()
        self._context = context
        self._labels = labels
        self._settings = settings
        self._clock = clock
        self._threads = threads
        self._book = book

    def __call__(self, events: Sequence[Event]) -> Effects:
        horizon = self._clock.now().timestamp() + self._settings.future_tolerance_s
        outputs = [event for event in events if isinstance(event, StudentOutput)]
        failed = {event.event_id: f"{event.TYPE} is not expected here" for event in events if not isinstance(event, StudentOutput)}
        for output in outputs:
            if output.occurred_at.timestamp() > horizon:
                failed[output.event_id] = f"occurred_at {output.occurred_at.isoformat()} lies in the future"
        outputs = [output for output in outputs if output.event_id not in failed]
        results = diagnose_outputs(self._graph, outputs, self._context, self._threads)
        self._labels.flush()
        failed.update({result.event_id: result.error for result in results if result.verdict == "failed"})
        pairs = [(output, result) for output, result in zip(outputs, results, strict=True) if output.event_id not in failed]
        return self._effects(pairs, failed)

    def _effects(self, pairs: Sequence[tuple[StudentOutput, OutputDiagnosis]], failed: dict[str, str]) -> Effects:
        diagnosed = [self._event(output, result) for output, result in pairs]
        return Effects(
            buckets={(*key,): (*counts,) for key, counts in fold_diagnoses(diagnosed).items()},
            watermarks=watermarks(output for output, _ in pairs),
            outbox=[encode(event) for event in diagnosed],
            ledger=_costs(pairs) if self._book else (),
            failed=failed,
        )

    def _event(self, output: StudentOutput, result: OutputDiagnosis) -> Diagnosed:
        verdict: Verdict = "abstained" if result.verdict == "failed" else result.verdict
        return Diagnosed(
            event_id=derived_id(output.event_id, "diagnose"),
            occurred_at=output.occurred_at,
            student=output.student,
            causation_id=output.event_id,
            student_version=output.student_version,
            verdict=verdict,
            needed=result.needed,
            missing=result.missing,
            evidence=result.evidence,
            discarded=result.discarded,
            decided_by=result.decided_by,
            teacher=self._context.teacher.name,
            bucket=bucket_of(output.occurred_at.timestamp(), self._settings.bucket_s),
        )


def _costs(pairs: Sequence[tuple[StudentOutput, OutputDiagnosis]]) -> list[dict[str, Any]]:
    """One ledger row per student and day of the batch; an event is in one committed batch only, so its id names the row."""
    total: dict[tuple[str, str], Usage] = {}
    first: dict[tuple[str, str], str] = {}
    for output, result in pairs:
        key = (output.student, _day(output.occurred_at))
        total[key] = total.get(key, Usage()) + result.usage
        first.setdefault(key, output.event_id)
    return [
        entry_row(derived_id(first[key], "cost"), key[0], None, key[1], "diagnose", usage) for key, usage in total.items() if usage.calls
    ]


def _day(moment: datetime) -> str:
    return moment.date().isoformat()
