"""One row of each stage's result. The files are these, one JSON object a line; docs/stat.md describes them
for users."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from agent.budget import Usage
from agent.items import Frozen
from agent.plan import StrategyName
from streams.events import AnswerVerdict


class AnswerRow(Frozen):
    """One answer of the student to a validation question; `sample` numbers several answers to one
    question."""

    question_id: str
    sample: int = Field(ge=0)
    response: str


class AssessedRow(Frozen):
    """Whether an answer is right, by the first difficulty filter with an opinion; `difficult` answers are
    diagnosed."""

    question_id: str
    sample: int
    verdict: AnswerVerdict
    decided_by: str
    error: str = ""

    @property
    def difficult(self) -> bool:
        """Only an answer that a filter calls wrong is difficult."""
        return self.verdict == "incorrect"


class DiagnosisRow(Frozen):
    """What the teacher says of one difficult answer (paper section 3.2). `missing` is a subset of
    `needed`."""

    question_id: str
    sample: int
    verdict: Literal["incorrect", "correct", "abstained", "failed"]
    needed: tuple[str, ...]
    missing: tuple[str, ...]
    evidence: str = ""
    discarded: int = 0
    usage: Usage = Usage()
    error: str = ""


class ProfileRow(Frozen):
    """One skill of the profile: answers that needed it and missed it, its miss rate, and how many pool
    questions need it.

    `missing` is the paper's count (misses over difficult answers); `miss_rate` divides it by the
    opportunities.
    """

    skill: str
    needed: int
    missing: int
    miss_rate: float
    share: float
    pool: int


class Origin(Frozen):
    """Where one pair of the data set came from. `usage` is what its text cost; shared calls are charged to
    the first pair."""

    strategy: StrategyName
    part: str
    kind: Literal["original", "rewritten", "synthesized"]
    skill: str | None
    cause: str | None
    source_ids: tuple[str, ...]
    teacher: str | None = None
    prompt_version: str | None = None
    usage: Usage = Usage()


class Message(Frozen):
    """One turn of a conversation."""

    role: Literal["user", "assistant"]
    content: str


class DatasetRow(Frozen):
    """One question-answer pair in the `messages` format of TRL, axolotl and (with tags) LLaMA-Factory."""

    id: str
    messages: tuple[Message, Message]
    skills: tuple[str, ...]
    origin: Origin
