"""Answers as events, into the spool. Nothing here fails a request: what cannot be captured is counted by its
reason."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
import uuid
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime

from pydantic import ValidationError

from agent.chance import rank
from serving.gateway.completions import Choice, StudentReply
from serving.gateway.redact import REDACTORS, UNREDACTED, session_key
from serving.gateway.spool import Spool
from serving.settings import CaptureSettings
from streams.codec import MAX_BYTES, first_error
from streams.events import Event, Feedback, FeedbackGiven, Served, StudentOutput, derived_id

logger = logging.getLogger(__name__)

LONG = 4096  # characters
MOST_CHANGES = 9  # of one answer's feedback
_HEADROOM = 4096  # headers and feedback come on top of an event's JSON


@dataclass(frozen=True)
class Asked:
    """A request as its capture needs it; `version` and `model` are those that were asked for."""

    student: str
    version: int
    model: str
    session: str
    questions: tuple[str, ...]
    began: float


@dataclass
class Answer:
    """What feedback by response id refers to; an event id that is empty was not captured. `given` is the
    last feedback, which was changed `changes` times."""

    event_id: str
    version: int
    student: str
    session: str
    given: str = ""
    changes: int = 0


class Capture:
    """Makes events of answers. `counts` says what became of them: `captured`, `sampled out`, `feedback`, and
    reasons for leaving an answer out.

    An event's id is made of the response's id and the choice's number, as `skillloop ingest` makes it of a
    logged completion: captured here and ingested from a log, an answer counts once.
    """

    def __init__(self, settings: CaptureSettings, spool: Spool) -> None:
        self._settings, self._spool = settings, spool
        self._redact = REDACTORS.choose(settings.redact)
        self._key = None if settings.redact == UNREDACTED else session_key(spool.root)
        self._versions: dict[str, int] = {}
        self._answers: OrderedDict[tuple[str, int], Answer] = OrderedDict()
        self.counts: Counter[str] = Counter()

    async def note(self, asked: Asked, reply: StudentReply, first_byte_s: float | None = None) -> None:
        """Capture a whole answer before its last byte goes out. Never raises."""
        try:
            latency_s = time.monotonic() - asked.began
            async for event in self._events(asked, reply, latency_s, first_byte_s):
                self.counts["captured"] += self._write(event)
        except ValidationError as exc:  # its own message would show the text
            logger.warning("an answer is no event: %s", first_error(exc))
            self.counts["no event"] += 1
        except Exception:
            logger.exception("an answer could not be captured")
            self.counts["error"] += 1

    def feedback(self, response_id: str, choice: int, feedback: Feedback) -> str | None:
        """Keep what a user says of an answer: `recorded`; `not captured` for an answer that was left out;
        `busy` where the disk is full, which answers need more. None for an id that is not known."""
        answer = self._answers.get((response_id, choice))
        if answer is None:
            return None
        if not answer.event_id:
            return "not captured"
        if feedback == answer.given or answer.changes == MOST_CHANGES:
            return "recorded"
        if self._spool.in_memory:
            return "busy"
        said = f"feedback-{feedback}" if not answer.given else f"feedback-{answer.changes + 1}-{feedback}"
        event = FeedbackGiven(
            event_id=derived_id(answer.event_id, said),
            occurred_at=datetime.now(UTC),
            student=answer.student,
            causation_id=answer.event_id,
            student_version=answer.version,
            session=answer.session,
            response_id=response_id,
            feedback=feedback,
        )
        if not self._write(event):
            return "busy"
        answer.changes += bool(answer.given)
        answer.given = feedback
        self.counts["feedback"] += 1
        return "recorded"

    async def _events(
        self, asked: Asked, reply: StudentReply, latency_s: float, first_byte_s: float | None
    ) -> AsyncIterator[StudentOutput]:
        version, model = self._version(asked, reply.models)
        cause = reply.response_id or str(uuid.uuid4())
        if (cause, 0) in self._answers:
            cause = f"{cause}/{uuid.uuid4()}"  # a replica that repeats its ids
        questions, session = asked.questions or ("",), self._pseudonym(asked.session)
        per_prompt = max(1, len(reply.choices) // len(questions))
        for number, choice in sorted(reply.choices.items()):
            event_id = derived_id(cause, f"choice-{number}")
            question = questions[min(number // per_prompt, len(questions) - 1)]
            why = self._left_out(event_id, version, question, choice)
            kept = Answer("" if why else event_id, version, asked.student, session)
            self._remember(reply.response_id, number, kept)
            if why:
                self.counts[why] += 1
                continue
            served = Served(
                response_id=cause[:200],
                model=model,
                finish_reason=choice.finish_reason,
                prompt_tokens=reply.tokens("prompt_tokens"),
                completion_tokens=reply.tokens("completion_tokens"),
                latency_s=latency_s,
                first_byte_s=first_byte_s,
                sampling_rate=self._settings.sample,
            )
            yield StudentOutput(
                event_id=event_id,
                occurred_at=datetime.now(UTC),
                student=asked.student,
                student_version=version,
                session=session or f"anonymous-{rank(0, event_id) % 64}",
                question=await self._redacted(question),
                answer=await self._redacted(choice.text),
                served=served,
            )

    def _version(self, asked: Asked, models: set[str]) -> tuple[int, str]:
        """The version that the replica says it is; 0 where that is unknown or not one."""
        self._versions[asked.model] = asked.version
        if len(models) != 1:
            return 0, ""
        model = next(iter(models))
        if model != asked.model:
            self.counts["another version answered"] += 1
        return self._versions.get(model, 0), model

    def _left_out(self, event_id: str, version: int, question: str, choice: Choice) -> str:
        if not version:
            return "unknown version"
        if choice.tools:
            return "tool call"  # the answer is still to come
        if not question or not choice.text:
            return "no text"
        if len(question) + len(choice.text) > MAX_BYTES - _HEADROOM:
            return "oversized"
        sampled = rank(0, "capture", event_id) < self._settings.sample * 2**64
        return "" if sampled else "sampled out"

    def _remember(self, response_id: str, number: int, answer: Answer) -> None:
        if response_id:
            self._answers[response_id, number] = answer
        while len(self._answers) > self._settings.remembered:
            self._answers.popitem(last=False)

    async def _redacted(self, text: str) -> str:
        """A long text is redacted in a thread: others are answered meanwhile."""
        if len(text) < LONG or self._key is None:
            return self._redact(text)
        return await asyncio.to_thread(self._redact, text)

    def _pseudonym(self, session: str) -> str:
        """The session as it is kept: often an email address, so where texts are redacted a keyed hash."""
        if self._key is None or not session:
            return session
        return hmac.new(self._key, session.encode(), "sha256").hexdigest()[:32]

    def _write(self, event: Event) -> bool:
        """Whether it is kept; one that is not is counted here or in the spool."""
        data = event.model_dump_json().encode()
        if len(data) > MAX_BYTES - _HEADROOM:
            self.counts["oversized"] += 1
            return False
        return self._spool.append(event.TYPE.encode() + b" " + data)
