"""What one answer says about the student's skills. The monitor graph and the stages of `skillloop stat` call
these two steps, so an answer is judged in the same way wherever it comes from.

1. The question's needed skills are labelled, once per text (`Labeller`), or taken from the label cache.
2. `assess`: the difficulty filters decide in order of trust whether the answer is right.
3. `explain`: a right answer needs no diagnosis. A wrong one is diagnosed; the missing skills are constrained
   to the needed ones, everything else is discarded and counted; evidence that the answer does not contain is
   dropped.
4. Whatever cannot be decided is `abstained` and changes nothing in the profile: nobody has an opinion, no
   label, or a teacher who finds nothing wrong with an answer that a more trusted filter calls wrong.

Student text reaches the teacher as an argument and nothing else; what comes back is checked against the
catalog, the needed skills and the answer before it counts.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from agent.budget import Usage
from agent.catalog import SkillCatalog
from agent.items import Frozen
from agent.profile import constrain
from graphs.filters.assess import NOBODY, Assessor, Opinion, first_opinion
from graphs.labels import LabelCache, Labeller, MemoryLabels, Needed
from graphs.teacher import STOPS, Diagnosis, Teacher
from serving.engine import EngineError
from streams.crash import CrashPoint, no_crash
from streams.events import AnswerVerdict, StudentOutput
from streams.state.store import StoreUnavailable

STOPS_THE_BATCH = (*STOPS, EngineError, StoreUnavailable, sqlite3.OperationalError, OSError)
"""Errors that say nothing about the answer at hand: teacher, money, student's engine, store, reply cache or
disk. They stop all work, which is repeated later. Any other error belongs to its one answer."""


class OutputDiagnosis(Frozen):
    """What is known of one output. `missing` is a subset of `needed`; `error` is set when `verdict` is
    `failed`.

    `decided_by` names the difficulty filter that judged the answer; `said` is the teacher's own verdict on
    one that was judged wrong, so `abstained` results tell a silent teacher from one that disagrees.
    `discarded` counts missing-skill labels that were thrown away: outside the catalog or the needed skills. A
    question that several outputs share is labelled for one of them: that one bears its `usage` and the count
    of its `unknown_labels`, which the catalog does not have.
    """

    event_id: str
    verdict: Literal["correct", "incorrect", "abstained", "failed"]
    needed: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    evidence: str = ""
    discarded: int = 0
    unknown_labels: int = 0
    decided_by: str = NOBODY
    said: AnswerVerdict = "abstained"
    usage: Usage = Usage()
    error: str = ""


@dataclass(frozen=True)
class MonitorContext:
    """What an answer is judged with. `assessors` are asked in this order.

    `offered` gives the skills that the teacher may choose from for an output, without it the whole catalog.
    Without `constrain` a missing skill may be any skill of the catalog, as in the paper, and then counts as
    needed too.
    """

    teacher: Teacher
    catalog: SkillCatalog
    assessors: tuple[Assessor, ...]
    labels: LabelCache = field(default_factory=MemoryLabels)
    offered: Callable[[StudentOutput], Sequence[str]] | None = None
    constrain: bool = True
    crash: CrashPoint = no_crash
    labeller: Labeller = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "labeller", Labeller(self.teacher, self.catalog, self.labels))

    def names(self, output: StudentOutput) -> Sequence[str]:
        """The skills offered for an output."""
        return self.offered(output) if self.offered else self.catalog.names

    def ask(self, output: StudentOutput, needed: Sequence[str]) -> Diagnosis:
        """The teacher's diagnosis of an output. Raises what the teacher raises."""
        bound = needed if self.constrain else ()
        return self.teacher.diagnose(output.question, output.answer, bound, self.names(output))


@dataclass(frozen=True)
class Case:
    """An output that was judged: by whom, and the teacher's diagnosis if judging it took one."""

    output: StudentOutput
    needed: Needed
    opinion: Opinion | None = None
    decided_by: str = NOBODY
    diagnosis: Diagnosis | None = None

    @property
    def difficult(self) -> bool:
        """Only an answer that a filter calls wrong is difficult."""
        return self.opinion == "incorrect"


def assess(output: StudentOutput, context: MonitorContext) -> Case:
    """Label the question and judge the answer. Raises `STOPS_THE_BATCH`, and what is wrong with this one
    answer."""
    needed = context.labeller.needed(output.question, context.names(output))
    asked: list[Diagnosis] = []

    def diagnose() -> Diagnosis:
        if not asked:
            asked.append(context.ask(output, needed.skills))
        return asked[0]

    opinion, decided_by = first_opinion(context.assessors, output, diagnose)
    return Case(output, needed, opinion, decided_by, asked[0] if asked else None)


def explain(case: Case, context: MonitorContext) -> OutputDiagnosis:
    """What an assessed answer says, with the skills missing in a wrong one. Raises like `assess`."""
    if case.difficult and case.diagnosis is None and (case.needed.skills or not context.constrain):
        case = replace(case, diagnosis=context.ask(case.output, case.needed.skills))
    diagnosis = case.diagnosis or Diagnosis(verdict="abstained")
    known = OutputDiagnosis(
        event_id=case.output.event_id,
        verdict="correct" if case.opinion == "correct" else "abstained",
        needed=case.needed.skills,
        unknown_labels=case.needed.discarded,
        decided_by=case.decided_by,
        said=diagnosis.verdict,
        usage=case.needed.usage + diagnosis.usage,
    )
    if not case.difficult or diagnosis.verdict != "incorrect":
        return known
    return _missing(known, diagnosis, case.output.answer, context)


def _missing(
    known: OutputDiagnosis, diagnosis: Diagnosis, answer: str, context: MonitorContext
) -> OutputDiagnosis:
    if context.constrain and not known.needed:
        return known
    named = tuple(dict.fromkeys(diagnosis.missing))
    if context.constrain:
        missing, discarded = constrain(named, known.needed, context.catalog)
    else:
        missing = tuple(skill for skill in named if skill in context.catalog)
        discarded = len(named) - len(missing)
    update = {
        "verdict": "incorrect",
        "needed": tuple(dict.fromkeys((*known.needed, *missing))),
        "missing": missing,
        "discarded": discarded,
        "evidence": diagnosis.evidence if diagnosis.evidence in answer else "",
    }
    return known.model_copy(update=update)


def failed(output: StudentOutput, exc: Exception) -> OutputDiagnosis:
    """The result of an answer that something is wrong with, for the dead letters."""
    text = f"{type(exc).__name__}: {exc}"
    return OutputDiagnosis(event_id=output.event_id, verdict="failed", error=text)
