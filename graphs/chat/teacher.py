"""The language-model teacher: the `CatalogTeacher` port over any OpenAI-compatible chat model.

A reply counts only when it passes our own checks (`graphs.chat.replies`): skills of the list, evidence
verbatim from the answer. One that does not gets one repair turn with the reason, then the teacher abstains; a
refusal, or a text the server cannot take, abstains at once. Abstentions and repairs are counted in `tally`.
The teacher has no tools and no memory: every call is one prompt.

`usage` of a reply is what it cost when it was made, also when it came from the cache: a data set made in two
goes has the same provenance as one made in one. What was really spent is in the meter.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal, TypeVar

from agent.budget import Activity, Usage
from agent.catalog import MAX_SKILLS_PER_ITEM
from agent.items import PoolItem
from graphs.chat import prompts, replies
from graphs.chat.cache import ReplyCache, SqliteReplies
from graphs.chat.client import ChatClient
from graphs.chat.meter import Books, Meter, Work
from graphs.chat.prompts import PROMPT_VERSION, Ask, Purpose
from graphs.chat.replies import Check, Rejected
from graphs.chat.settings import ChatReply, ChatSettings, RequestSampling
from graphs.teacher import Clusters, Diagnosis, Labels, SkillName, Solution, Solutions, Written
from streams.clock import Clock

T = TypeVar("T")
MAX_ECHO_CHARS = 4000
_ACTIVITY: Mapping[Purpose, Activity] = {
    "name_skill": "label",
    "cluster": "label",
    "label": "label",
    "diagnose": "diagnose",
    "write": "synthesize",
    "solve": "synthesize",
    "rewrite": "synthesize",
}


class Tally:
    """Counts of replies that were repaired or given up, by purpose. Safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, str]] = Counter()

    def add(self, what: Literal["repaired", "refused", "invalid"], purpose: Purpose) -> None:
        with self._lock:
            self._counts[what, purpose] += 1

    def count(self, what: Literal["repaired", "refused", "invalid"], purpose: Purpose | None = None) -> int:
        """How often, for one purpose or for all. An abstention is `refused` or `invalid`; `repaired` counts
        repair turns asked for."""
        with self._lock:
            return sum(
                count
                for (kind, for_what), count in self._counts.items()
                if kind == what and purpose in (None, for_what)
            )


class ChatTeacher:
    """A teacher over a chat model. Methods may be called from several threads.

    All raise `TeacherUnavailable` (after the client's retries), `TeacherMisconfigured`, `BudgetExceeded` and
    `UnpricedModel`. `for_round` gives a teacher with the same client whose calls are booked on a round.
    """

    def __init__(
        self,
        client: ChatClient,
        student: str = "",
        round_id: str | None = None,
        tally: Tally | None = None,
        replies: SqliteReplies | None = None,
    ) -> None:
        self.client = client
        self.student = student
        self.round_id = round_id
        self.tally = tally or Tally()
        self.name = client.settings.model
        self.prompt_version = PROMPT_VERSION
        self._chars = client.settings.max_text_chars
        self._replies = replies

    @classmethod
    def connect(
        cls,
        settings: ChatSettings,
        cache: ReplyCache | None = None,
        meter: Meter | None = None,
        student: str = "",
        clock: Clock | None = None,
    ) -> ChatTeacher:
        """A teacher with a client of its own. Nothing is sent before the first call."""
        return cls(ChatClient(settings, cache, meter, clock), student)

    @classmethod
    def kept(cls, settings: ChatSettings, books: Books) -> ChatTeacher:
        """A teacher whose replies and costs are kept in `books`."""
        replies = SqliteReplies(books.replies)
        client = ChatClient(settings, replies, books.meter(settings.model, settings.price))
        return cls(client, books.student, replies=replies)

    def check(self) -> str:
        """See `graphs.chat.client.ChatClient.check`."""
        return self.client.check()

    def for_round(self, round_id: str | None) -> ChatTeacher:
        """The same teacher, its calls booked on this round."""
        return ChatTeacher(self.client, self.student, round_id, self.tally)

    def close(self) -> None:
        """Close the client's connections, and the file of replies that is this teacher's own."""
        self.client.close()
        if self._replies is not None:
            self._replies.close()

    def __enter__(self) -> ChatTeacher:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def name_skill(self, question: str) -> SkillName:
        name, usage = self._ask(
            prompts.name_skill(question, self._chars), replies.skill_name, self._judging()
        )
        return SkillName(name=name or "", usage=usage)

    def cluster(self, names: Sequence[str], at_most: int) -> Clusters:
        skills, usage = self._ask(prompts.cluster(names, at_most), replies.clusters(at_most), self._judging())
        return Clusters(skills=skills or (), usage=usage)

    def label(self, question: str, skills: Sequence[str]) -> Labels:
        if not skills:
            return Labels(skills=())
        named, usage = self._ask(
            prompts.label(question, skills, self._chars), replies.labels(frozenset(skills)), self._judging()
        )
        return Labels(skills=(named or ())[:MAX_SKILLS_PER_ITEM], usage=usage)

    def diagnose(self, question: str, answer: str, needed: Sequence[str], skills: Sequence[str]) -> Diagnosis:
        """Only needed skills are offered to the model, where they are known; the check admits the whole
        catalog."""
        offered = needed or skills
        if not offered:
            return Diagnosis(verdict="abstained")
        ask = prompts.diagnose(question, answer, offered, self._chars)
        found, usage = self._ask(
            ask, replies.diagnosis(answer, frozenset((*skills, *needed))), self._judging()
        )
        return (found or Diagnosis(verdict="abstained")).model_copy(update={"usage": usage})

    def write(self, skill: str, references: Sequence[PoolItem], count: int, seed: int) -> Written:
        ask = prompts.write(skill, references, count, self._chars)
        questions, usage = self._ask(ask, replies.questions(references, count), self._creating(seed))
        return Written(questions=questions or (), usage=usage)

    def solve(self, question: str, count: int, seed: int) -> Solutions:
        return self._samples(prompts.solve(question, self._chars), count, seed)

    def rewrite(self, item: PoolItem, count: int, seed: int) -> Solutions:
        return self._samples(prompts.rewrite(item, self._chars), count, seed)

    def _samples(self, ask: Ask, count: int, seed: int) -> Solutions:
        """`count` independent calls; a sample that cannot be used is left out."""
        solutions: list[Solution] = []
        total = Usage()
        for sample in range(count):
            solution, usage = self._ask(ask, replies.solution, self._creating(seed, sample))
            total = total + usage
            if solution is not None:
                solutions.append(solution)
        return Solutions(solutions=tuple(solutions), usage=total)

    def _judging(self) -> RequestSampling:
        return RequestSampling(
            temperature=self.client.settings.temperature, max_tokens=self.client.settings.max_tokens
        )

    def _creating(self, seed: int, sample: int = 0) -> RequestSampling:
        settings = self.client.settings
        return RequestSampling(
            temperature=settings.creative_temperature,
            max_tokens=settings.max_tokens,
            seed=seed,
            sample=sample,
        )

    def _ask(self, ask: Ask, check: Check[T], sampling: RequestSampling) -> tuple[T | None, Usage]:
        """A checked reply, or `None` for an abstention, and what it cost with the repair."""
        work = Work(self.student, self.round_id, _ACTIVITY[ask.purpose])
        reply, usage = self.client.reply(ask, ask.messages, sampling, work)
        if reply.refused:
            return self._abstain("refused", ask, usage)
        try:
            return check(reply.text), usage
        except Rejected as exc:
            self.tally.add("repaired", ask.purpose)
            turns = [*ask.messages, ("assistant", _echo(reply)), ("user", prompts.repair(str(exc)))]
        reply, more = self.client.reply(ask, turns, sampling, work)
        if reply.refused:
            return self._abstain("refused", ask, usage + more)
        try:
            return check(reply.text), usage + more
        except Rejected:
            return self._abstain("invalid", ask, usage + more)

    def _abstain(self, why: Literal["refused", "invalid"], ask: Ask, usage: Usage) -> tuple[None, Usage]:
        self.tally.add(why, ask.purpose)
        return None, usage


def _echo(reply: ChatReply) -> str:
    return reply.text[:MAX_ECHO_CHARS] or "(no reply)"
