"""Traffic becomes held-out questions: which of a batch are reserved, with which reference answer, and when
they make the set's next version (docs/decisions/0030)."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

from agent.budget import Usage
from agent.chance import rank
from agent.items import HeldOutItem
from graphs.chat.settings import callers
from graphs.curate.duplicates import QuestionIndex, question_key, untouchable
from graphs.curate.steps import agreed
from graphs.filters.assess import NOBODY
from graphs.monitor.diagnose import OutputDiagnosis
from graphs.teacher import STOPS
from loop.config import Config
from loop.tasks.task import Task
from loop.workers.heldout import HeldOutSet
from streams.events import StudentOutput
from streams.state.held_out import Source, reserved_row
from training.errors import ArtifactError, DatasetError, RegistryUnavailable

logger = logging.getLogger(__name__)
Judged = tuple[StudentOutput, OutputDiagnosis]


def falls_into(question: str, share: float) -> bool:
    """Whether a question is one of those that may be reserved: by the hash of its tokens, so that every
    worker, today and later, says the same of it."""
    return int(question_key(question)[:13], 16) < share * 16**13


@dataclass(frozen=True)
class _Candidate:
    """A question that is wanted; `answer` is one that the grader has seen."""

    item: HeldOutItem
    answer: str
    gold: str | None


class Reserve:
    """Reserves questions of one student's graded traffic. `taught` gives the prompts that its versions were
    trained on."""

    def __init__(
        self, config: Config, task: Task, held_out: HeldOutSet, taught: Callable[[], Iterable[str]]
    ) -> None:
        self._config = config
        self._task = task
        self._held_out = held_out
        self._taught = taught

    def rows(self, judged: Sequence[Judged]) -> tuple[list[dict[str, object]], Usage]:
        """The rows of a batch's reserved questions, and what their reference answers cost. Raises
        `graphs.teacher.STOPS`."""
        if not self._held_out.settings.share:
            return [], Usage()
        wanted = self._wanted(judged)
        with ThreadPoolExecutor(max_workers=callers(self._config.teacher.chat)) as pool:
            referenced = list(pool.map(self._reference, wanted))
        rows, usage = [], Usage()
        for candidate, (answer, source, paid) in zip(wanted, referenced, strict=True):
            usage += paid
            if answer and self._task.grade(answer, candidate.answer) is not None:
                item = candidate.item.model_copy(update={"answer": answer})
                rows.append(reserved_row(self._config.student.name, item, source))
        return rows, usage

    def _wanted(self, judged: Sequence[Judged]) -> list[_Candidate]:
        """Each question once, and no more of them than their skills lack."""
        counts, chosen = Counter(self._held_out.recent()), dict[str, _Candidate]()
        for output, result in judged:
            item = self._item(output, result, counts)
            if item is not None and item.item_id not in chosen:
                chosen[item.item_id] = _Candidate(item, output.answer, output.gold)
                counts.update(self._held_out.measures(item.skills, item.stratum))
        return list(chosen.values())

    def _item(
        self, output: StudentOutput, result: OutputDiagnosis, counts: Counter[str]
    ) -> HeldOutItem | None:
        """The question as a held-out item without its answer; None: not wanted. What is cheap is asked
        first."""
        settings = self._held_out.settings
        if output.student != self._config.student.name or result.decided_by == NOBODY or not result.needed:
            return None
        stratum = self._held_out.stratum(result.needed)
        if stratum is None:
            return None
        helped = self._held_out.measures(result.needed, stratum)
        if not any(counts[skill] < settings.per_skill for skill in helped):
            return None
        if not falls_into(output.question, settings.share) or self._known.find(output.question):
            return None
        return HeldOutItem(
            item_id=f"traffic/{question_key(output.question)[:32]}",
            question=output.question,
            answer="",
            skills=result.needed,
            stratum=stratum,
        )

    @cached_property
    def _known(self) -> QuestionIndex:
        """What may be trained on, and what is held out already."""
        pool = [item.question for item in self._task.pool]
        held_out = [item.question for item in self._task.held_out]
        return untouchable(self._config.duplicates, [*pool, *held_out])

    def _reference(self, candidate: _Candidate) -> tuple[str, Source, Usage]:
        """The reference answer: the application's, or the one that the teacher's solutions agree on."""
        if candidate.gold is not None:
            return candidate.gold, "gold", Usage()
        question, settings = candidate.item.question, self._held_out.settings
        seed = rank(self._config.seed, "reference", question) % 2**31
        try:
            reply = self._task.teacher.solve(question, settings.solutions, seed)
        except STOPS:
            raise
        except Exception:
            logger.warning("no reference answer for %.80r", question, exc_info=True)
            return "", "teacher", Usage()
        alike = agreed(reply.solutions, settings.min_agreement, self._task.grade)
        return alike[0].answer if alike else "", "teacher", reply.usage

    def next_version(self, answers: int) -> int | None:
        """The version for a round that opens now, grown by what waits. None: the set is not what the policy
        counted, so it must look again.

        What a version of the student was trained on meanwhile, or something near it, is refused; while that
        cannot be read, nothing is admitted.
        """
        waiting = [known.item for known in self._held_out.reserved() if known.version is None]
        try:
            prompts = list(self._taught()) if waiting else []
        except (DatasetError, ArtifactError, RegistryUnavailable) as exc:
            logger.warning("the held-out set does not grow: %s", exc)
            return self._held_out.latest().version
        taught = untouchable(self._config.duplicates, prompts)
        refused = [item for item in waiting if taught.find(item.question)]
        admitted = [item for item in waiting if item not in refused]
        grown = self._held_out.grow(admitted, refused, answers)
        return self._held_out.latest().version if grown and not refused else None
