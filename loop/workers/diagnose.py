"""From student outputs to what a batch changes: the handler between the consume loop and the monitor
graph."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Literal

from agent.budget import Usage
from agent.profile import bucket_of
from graphs.filters.assess import NOBODY
from graphs.monitor.diagnose import MonitorContext, OutputDiagnosis
from graphs.monitor.graph import build_monitor, diagnose_outputs
from loop.config import MonitorSection
from loop.workers.reserve import Judged, Reserve
from streams.clock import Clock
from streams.codec import encode
from streams.consume import Effects
from streams.events import AnswerVerdict, Diagnosed, Event, EventKey, StudentOutput
from streams.folding import fold_diagnoses, watermarks
from streams.state.labels import StoredLabels
from streams.state.ledger import entry_row
from streams.state.rounds import Row


class DiagnoseHandler:
    """Turns outputs into effects for the consume loop; no side effect but the label cache. Raises what stops
    a batch.

    `threads` answers are diagnosed at once. `book`: enter the teacher's costs in the ledger, for one that
    does not do so itself. `reserve` takes questions for the held-out set.
    """

    def __init__(
        self,
        context: MonitorContext,
        labels: StoredLabels,
        settings: MonitorSection,
        clock: Clock,
        threads: int,
        book: bool = True,
        reserve: Reserve | None = None,
    ) -> None:
        self._graph = build_monitor()
        self._context = context
        self._labels = labels
        self._settings = settings
        self._clock = clock
        self._threads = threads
        self._book = book
        self._reserve = reserve

    def __call__(self, events: Sequence[Event]) -> Effects:
        horizon = self._clock.now().timestamp() + self._settings.future_tolerance_s
        outputs = [event for event in events if isinstance(event, StudentOutput)]
        failed = {
            event.identity: f"{event.TYPE} is not expected here"
            for event in events
            if not isinstance(event, StudentOutput)
        }
        for output in outputs:
            if output.occurred_at.timestamp() > horizon:
                failed[output.identity] = f"occurred_at {output.occurred_at.isoformat()} lies in the future"
        outputs = [output for output in outputs if output.identity not in failed]
        results = diagnose_outputs(self._graph, outputs, self._context, self._threads)
        self._labels.flush()
        diagnosed = list(zip(outputs, results, strict=True))
        failed.update({output.identity: r.error for output, r in diagnosed if r.verdict == "failed"})
        return self._effects([pair for pair in diagnosed if pair[0].identity not in failed], failed)

    def _effects(self, pairs: Sequence[Judged], failed: dict[EventKey, str]) -> Effects:
        diagnosed = [self._event(output, result) for output, result in pairs]
        rows, paid = self._reserve.rows(pairs) if self._reserve else ([], Usage())
        today = self._clock.now().date()
        return Effects(
            buckets=fold_diagnoses(diagnosed),
            watermarks=watermarks(output for output, _ in pairs),
            outbox=[encode(event) for event in diagnosed],
            ledger=[*_costs(pairs, today), *_reference_costs(pairs, paid, today)] if self._book else (),
            held_out=rows,
            failed=failed,
        )

    def _event(self, output: StudentOutput, result: OutputDiagnosis) -> Diagnosed:
        verdict: AnswerVerdict = "abstained" if result.verdict == "failed" else result.verdict
        return Diagnosed(
            event_id=output.derive("diagnose"),
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
            judged=_judged(result),
        )


def _judged(result: OutputDiagnosis) -> Literal["correct", "incorrect", "undecided"]:
    """What the difficulty filters say. An abstention in which one of them decided is a wrong answer that
    nobody could explain."""
    if result.decided_by == NOBODY:
        return "undecided"
    return "correct" if result.verdict == "correct" else "incorrect"


def _costs(pairs: Sequence[Judged], today: date) -> list[Row]:
    """One ledger row per student of the batch, on the day of the loop's clock; an event is in one committed
    batch only, so its id names the row."""
    total: dict[str, Usage] = {}
    first: dict[str, StudentOutput] = {}
    for output, result in pairs:
        total[output.student] = total.get(output.student, Usage()) + result.usage
        first.setdefault(output.student, output)
    return [
        entry_row(first[student].derive("cost"), student, None, today.isoformat(), "diagnose", usage)
        for student, usage in total.items()
        if usage.calls
    ]


def _reference_costs(pairs: Sequence[Judged], paid: Usage, today: date) -> list[Row]:
    """The ledger row of a batch's reference answers, if there were any to pay."""
    if not paid.calls:
        return []
    first = pairs[0][0]
    return [entry_row(first.derive("reference"), first.student, None, today.isoformat(), "synthesize", paid)]
