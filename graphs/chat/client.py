"""One request to an OpenAI-compatible server: from the cache, or paid, paced and retried. The only user of
langchain-openai.

1. The cache is asked first; equal requests under way wait for the first one.
2. The meter sets the most it can cost aside (`BudgetExceeded`, `UnpricedModel`).
3. `Pace` gives a turn for the time on the wire only: others prepare a request or read a reply meanwhile. A
   passing error waits (Retry-After, else exponential with jitter) and tries again: the only retrying layer,
   with the client's own retries off and `TeacherExhausted` at its end.
4. The meter books what was used, then the reply is stored, then returned.

`ChatOpenAI.with_structured_output` is not used: with a class it raises on a truncated reply and loses its
tokens, with a JSON schema its parser completes truncated JSON in silence, and its chain costs half as much
again as the request (docs/decisions/0016).
"""

from __future__ import annotations

import json
import logging
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import openai
from langchain_core.messages import AIMessage
from langchain_openai import ChatOpenAI
from pydantic import SecretStr
from tenacity import RetryCallState, Retrying, retry_if_exception, wait_random_exponential

from agent.budget import Usage
from agent.items import JsonObject
from graphs.chat.cache import MemoryReplies, ReplyCache, reply_key
from graphs.chat.errors import NoCompletion, is_about_the_text, is_passing, misconfigured, retry_after_s
from graphs.chat.meter import Meter, Work
from graphs.chat.pace import Pace
from graphs.chat.prompts import Ask
from graphs.chat.settings import ChatReply, ChatSettings, RequestSampling
from graphs.teacher import TeacherExhausted, TeacherMisconfigured, TeacherUnavailable
from streams.clock import Clock, SystemClock

log = logging.getLogger(__name__)
Turns = list[tuple[str, str]]
MAX_REPLY_BYTES = 16 * 1_048_576
_OF_THE_WIRE = frozenset({b"content-encoding", b"content-length", b"transfer-encoding"})
_MESSAGE_TOKENS = 64  # what a chat template adds to a message, at most


class _PacedHttp(openai.DefaultHttpxClient):
    """Waits for its turn, bounds the time of a whole reply (httpx bounds the time between two bytes) and its
    size, and follows no redirect: it would take the key and the student's texts elsewhere."""

    def __init__(self, pace: Pace, timeout_s: float) -> None:
        super().__init__(timeout=timeout_s, follow_redirects=False)
        self._pace, self._timeout_s = pace, timeout_s

    def send(self, request: Any, **options: Any) -> Any:  # of httpx or its successor, as the SDK has it
        with self._pace.turn():
            deadline = time.monotonic() + self._timeout_s
            response = super().send(request, **{**options, "stream": True, "follow_redirects": False})
            try:
                body = self._read(response, deadline)
            finally:
                response.close()
        headers = [(name, value) for name, value in response.headers.raw if name.lower() not in _OF_THE_WIRE]
        return type(response)(response.status_code, headers=headers, content=body, request=request)

    def _read(self, response: Any, deadline: float) -> bytes:
        errors = import_module(type(response).__module__.partition(".")[0])
        body = bytearray()
        for part in response.iter_bytes():
            body += part
            if time.monotonic() > deadline:
                raise errors.ReadTimeout(f"the reply took more than {self._timeout_s} s")
            if len(body) > MAX_REPLY_BYTES:
                raise errors.ReadError(f"the reply has more than {MAX_REPLY_BYTES} bytes")
        return bytes(body)


class ChatClient:
    """Sends requests; safe for threads."""

    def __init__(
        self,
        settings: ChatSettings,
        cache: ReplyCache | None = None,
        meter: Meter | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.settings = settings
        self.cache: ReplyCache = cache if cache is not None else MemoryReplies()
        self.meter = meter or Meter(settings.model, settings.price)
        self._clock = clock or SystemClock()
        self._pace = Pace(settings.max_concurrency, settings.requests_per_minute, self._clock)
        self._flights: weakref.WeakValueDictionary[str, threading.Lock] = weakref.WeakValueDictionary()
        self._lock = threading.Lock()
        self._succeeded: set[str] = set()
        # langchain-openai shares one connection pool among all clients of an address: closing one would close
        # the others.
        self._http = _PacedHttp(self._pace, settings.timeout_s)
        self._model = ChatOpenAI(
            model=settings.model,
            base_url=settings.base_url,
            api_key=SecretStr(settings.api_key.get_secret_value() or "none"),
            http_client=self._http,
            timeout=settings.timeout_s,
            max_retries=0,
            use_responses_api=False,
        )

    def reply(self, ask: Ask, turns: Turns, sampling: RequestSampling, work: Work) -> tuple[ChatReply, Usage]:
        """The server's reply to `turns` and what it cost when it was made.

        Raises `TeacherExhausted`, `TeacherMisconfigured`, `BudgetExceeded`, `UnpricedModel`.
        """
        key = reply_key(self.settings.model, ask, turns, sampling)
        with self._flight(key):
            known = self.cache.get(key)
            if known is not None:
                return known, self.meter.cached(work, _used(known))
            return self._paid(key, ask, turns, sampling, work)

    def _paid(
        self, key: str, ask: Ask, turns: Turns, sampling: RequestSampling, work: Work
    ) -> tuple[ChatReply, Usage]:
        estimate = self.meter.reserve(work, _most_tokens(ask, turns), sampling.max_tokens)
        try:
            reply = self._persist(ask, turns, sampling)
        except BaseException:
            self.meter.release(estimate)
            raise
        if reply.finish == "rejected":
            self.meter.release(estimate)
            return reply, Usage()
        if not reply.metered:  # the server does not say what it used: the most it can have been is booked
            most = estimate.usage
            tokens = {"prompt_tokens": most.prompt_tokens, "completion_tokens": most.completion_tokens}
            reply = reply.model_copy(update=tokens)
        usage = self.meter.settle(work, estimate, _used(reply))
        self.cache.put(key, reply.model_copy(update={"purpose": ask.purpose}))
        return reply, usage

    def _persist(self, ask: Ask, turns: Turns, sampling: RequestSampling) -> ChatReply:
        """Try until there is a reply, a lasting error, or no attempt left."""
        settings = self.settings
        retrying = Retrying(
            retry=retry_if_exception(is_passing),
            wait=self._wait,
            stop=self._stop,
            sleep=self._clock.sleep,
            before_sleep=self._note,
            reraise=True,
        )
        try:
            return retrying(self._once, ask, turns, sampling)
        except openai.APIStatusError as exc:
            if is_passing(exc):
                raise self._exhausted(exc) from exc
            if is_about_the_text(exc, ask.purpose in self._succeeded):
                log.warning(
                    "%s: the server cannot answer this text (HTTP %d %s)",
                    ask.purpose,
                    exc.status_code,
                    exc.code,
                )
                return ChatReply(text="", finish="rejected")
            raise misconfigured(exc, settings.base_url, settings.model) from exc
        except Exception as exc:
            if not is_passing(exc):
                raise
            raise self._exhausted(exc) from exc

    def _once(self, ask: Ask, turns: Turns, sampling: RequestSampling) -> ChatReply:
        try:
            message = self._model.invoke(turns, **self._parameters(ask, sampling))
        except UnicodeError:
            raise
        except (
            ValueError,
            TypeError,
            AttributeError,
            KeyError,
        ) as exc:  # what langchain-openai raises for a body it cannot read
            raise NoCompletion(str(exc)[:300]) from exc
        self._succeeded.add(ask.purpose)
        return _read(message)

    def _parameters(self, ask: Ask, sampling: RequestSampling) -> JsonObject:
        schema = {"name": ask.purpose, "strict": True, "schema": dict(ask.schema)}
        # As extra_body: given directly, the SDK parses the reply itself, and raises where one is cut short,
        # without its text.
        response_format = {"type": "json_schema", "json_schema": schema}
        chosen: JsonObject = {
            "extra_body": {"response_format": response_format},
            "max_tokens": sampling.max_tokens,
        }
        if sampling.temperature is not None:
            chosen["temperature"] = sampling.temperature
        if sampling.seed is not None and self.settings.send_seed:
            chosen["seed"] = (sampling.seed + sampling.sample) % 2**31
        return chosen

    def _wait(self, state: RetryCallState) -> float:
        asked = retry_after_s(state.outcome.exception() if state.outcome else None, self._clock.now())
        if asked is not None and asked <= self.settings.max_backoff_s:
            self._pace.pause(asked)
            return asked
        return wait_random_exponential(self.settings.backoff_s, self.settings.max_backoff_s)(state)

    def _stop(self, state: RetryCallState) -> bool:
        """After the last attempt, or when the server asks for a longer pause than is worth waiting out
        here."""
        asked = retry_after_s(state.outcome.exception() if state.outcome else None, self._clock.now()) or 0.0
        return state.attempt_number >= self.settings.max_attempts or asked > self.settings.max_backoff_s

    def _note(self, state: RetryCallState) -> None:
        log.info(
            "the teacher's server is busy (%s); attempt %d follows", state.outcome, state.attempt_number + 1
        )

    def _exhausted(self, error: BaseException) -> TeacherExhausted:
        what = (
            f"HTTP {error.status_code}"
            if isinstance(error, openai.APIStatusError)
            else f"{type(error).__name__}: {error}"
        )
        return TeacherExhausted(
            f"{self.settings.base_url} does not answer ({what}); "
            f"retried up to {self.settings.max_attempts} times"
        )

    def check(self) -> str:
        """Ask the server, once and without cost, which models it has. Raises `TeacherUnavailable`,
        `TeacherMisconfigured`."""
        url, model = self.settings.base_url, self.settings.model
        try:
            names = {str(served.id) for served in self._model.root_client.models.list()}
        except openai.NotFoundError:
            return f"{url} answers, but does not list its models"
        except openai.APIStatusError as exc:
            if is_passing(exc):
                raise TeacherUnavailable(f"{url} answers HTTP {exc.status_code}") from exc
            raise misconfigured(exc, url, model) from exc
        except openai.APIError as exc:
            raise TeacherUnavailable(f"{url} does not answer ({exc})") from exc
        if names and model not in names:
            raise TeacherMisconfigured(
                f"teacher.chat.model {model!r} is not served at {url}; it has {', '.join(sorted(names)[:9])}"
            )
        return f"{url} answers and has {model!r}"

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    @contextmanager
    def _flight(self, key: str) -> Iterator[None]:
        """One at a time for equal requests, so that the second one finds the first one's reply."""
        with self._lock:
            flight = self._flights.setdefault(key, threading.Lock())
        with flight:
            yield


def _read(message: AIMessage) -> ChatReply:
    used = message.usage_metadata
    counts = (used["input_tokens"], used["output_tokens"]) if used else (-1, -1)
    metered = min(counts) >= 0
    refusal = message.additional_kwargs.get("refusal")
    return ChatReply(
        text="" if refusal else str(message.text),
        finish="refusal" if refusal else str(message.response_metadata.get("finish_reason") or "stop"),
        prompt_tokens=counts[0] if metered else 0,
        completion_tokens=counts[1] if metered else 0,
        metered=metered,
    )


def _used(reply: ChatReply) -> Usage:
    return Usage(calls=1, prompt_tokens=reply.prompt_tokens, completion_tokens=reply.completion_tokens)


def _most_tokens(ask: Ask, turns: Turns) -> int:
    """No tokenizer makes more tokens of a text than it has bytes."""
    texts = [text for _, text in turns]
    return sum(len(text.encode("utf-8", "replace")) + _MESSAGE_TOKENS for text in texts) + len(
        json.dumps(ask.schema)
    )
