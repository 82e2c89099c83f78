"""What a run can be checked against on real data: the grader against human-checked flags, STAT-Sel against
the paper's counts, and the duplicates between a training and a test set. `benchmarks/offline.py` prints them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.catalog import SkillMap
from agent.chance import ordered, rank
from agent.plan import Failure, PlanInput, StrategySettings, choose_pairs
from agent.selection import PoolReport
from agent.strategies import plan_strategy
from graphs.curate.duplicates import QuestionIndex, Same, SameQuestion
from loop.tasks.grading import Grade
from loop.tasks.questions import Question, subject_key
from streams.files import read_objects


@dataclass(frozen=True)
class Disagreement:
    """An answer that the grader and the file's flag judge differently. The texts are for explaining it, not
    for keeping."""

    answer_id: str
    flag: bool
    graded: bool | None
    expected: str
    extracted: str


@dataclass(frozen=True)
class Agreement:
    """How far the grader agrees with the flags of `answers` answers."""

    answers: int
    disagreements: tuple[Disagreement, ...]

    @property
    def share(self) -> float:
        """Part of the answers judged alike."""
        return 1 - len(self.disagreements) / self.answers


def agreement(path: Path, grade: Grade) -> Agreement:
    """Grade the answers of a file with the fields question, response, reference_answer, extracted,
    graded_correct."""
    rows = list(read_objects(path))
    disagreements: list[Disagreement] = []
    for row in rows:
        graded = grade(row["question"], row["reference_answer"], row["response"])
        if graded is not row["graded_correct"]:
            disagreements.append(
                Disagreement(
                    row["id"], row["graded_correct"], graded, row["reference_answer"], str(row["extracted"])
                )
            )
    return Agreement(len(rows), tuple(disagreements))


@dataclass(frozen=True)
class SelectionCounts:
    """What STAT-Sel comes to. `drawn` and `items` count with and without repetition; `pools` are per missing
    skill."""

    difficult: int
    targets: int
    drawn: int
    items: int
    pairs: int
    pair_items: int
    pools: Mapping[str, PoolReport]


def difficult_questions(
    questions: Sequence[Question], pool: Sequence[Question], count: int, seed: int
) -> list[Failure]:
    """A profile to select for: `count` questions, each missing its own skill and one or two more of its
    subject, as the paper reports 2-3 per response. The further skills are drawn by how often the subject's
    pool questions need them.
    """
    by_subject: dict[str, list[str]] = {}
    for item in pool:
        by_subject.setdefault(subject_key(item.subject), []).extend(item.skills)
    known = {skill for skills in by_subject.values() for skill in skills}
    by_id = {item.item_id: item for item in questions if set(item.skills) & known}
    failures = []
    for item_id in ordered(by_id, seed, "difficult")[:count]:
        item = by_id[item_id]
        subject = by_subject.get(subject_key(item.subject), [])
        wanted = 2 + rank(seed, "skills", item_id) % 2
        drawn = (
            [subject[rank(seed, "further", item_id, str(turn)) % len(subject)] for turn in range(20)]
            if subject
            else []
        )
        missing = tuple(dict.fromkeys((*item.skills, *drawn)))[:wanted]
        failures.append(Failure(question_id=item_id, needed=missing, missing=missing))
    return failures


def selection_counts(
    pool: Sequence[Question],
    failures: Sequence[Failure],
    seed: int,
    settings: StrategySettings = StrategySettings(),
) -> SelectionCounts:
    """Plan STAT-Sel and count (paper section 3.3: 500 difficult questions, 2-3 skills, 5 questions each, 3
    answers, 9.5k pairs)."""
    skill_map = SkillMap((item.item_id, item.skills) for item in pool if item.skills)
    plan = plan_strategy(
        "stat-sel", PlanInput(skill_map, [item.item_id for item in pool], failures, seed), settings
    )
    pairs = choose_pairs(plan, settings.pairs, seed)
    targets = Counter(skill for failure in failures for skill in failure.missing)
    picked = Counter(draw.skill for draw in plan.draws)
    return SelectionCounts(
        difficult=len(failures),
        targets=targets.total(),
        drawn=len(plan.draws),
        items=plan.unique_items,
        pairs=len(pairs),
        pair_items=len({pair.draw.item_id for pair in pairs}),
        pools={
            skill: PoolReport(
                count * settings.k_sel,
                len(skill_map.items(skill)),
                len(skill_map.items(skill)),
                picked[skill],
            )
            for skill, count in targets.items()
        },
    )


def duplicates(
    train: Sequence[Question], test: Sequence[Question], rule: SameQuestion = SameQuestion(threshold=0.6)
) -> dict[str, Same]:
    """The training questions that a test question repeats, by id: exactly, or nearly by `rule`."""
    held_out = QuestionIndex(rule, (item.question for item in test))
    repeated = {item.item_id: held_out.find(item.question) for item in train}
    return {item_id: same for item_id, same in repeated.items() if same is not None}
