"""What an error of the server means: try again, ask somebody to correct a setting, or this one text cannot be
answered.

| answer of the server | meaning |
|---|---|
| 408, 409, 425, 429, 5xx, time-out, lost connection, no completion | passing: retried, `TeacherExhausted` |
| 429 with the code `insufficient_quota`, 401, 403, 404 | `TeacherMisconfigured`, names the setting |
| 400, 413, 422 for the text's length or from a content filter | the text cannot be answered: an abstention |
| another 400, 413, 422 | `TeacherMisconfigured`; once a request of this kind has succeeded: an abstention |

LangGraph's default predicate gets two of these wrong (it repeats 400 and 401, and does not repeat time-outs).
"""

from __future__ import annotations

import email.utils
import math
from datetime import UTC, datetime

import openai

from graphs.teacher import TeacherMisconfigured

DAY_S = 86_400.0
_PASSING = frozenset({408, 409, 425, 429})
_ABOUT_THE_TEXT = frozenset({400, 413, 422})
_TOO_LONG = ("context length", "context_length", "context window", "too long", "too large", "max_model_len")


class NoCompletion(Exception):
    """The server answered 200 with something other than a chat completion: a proxy's page, half a body."""


def is_passing(error: BaseException) -> bool:
    """Whether the same request may succeed later."""
    if isinstance(error, openai.APIStatusError):
        passing = error.status_code in _PASSING or error.status_code >= 500
        return passing and error.code != "insufficient_quota"
    return isinstance(error, (openai.APIConnectionError, openai.APIResponseValidationError, NoCompletion))


def is_about_the_text(error: openai.APIStatusError, succeeded: bool) -> bool:
    """Whether it is this one text that cannot be answered. `succeeded`: a request of this kind has been
    answered before."""
    if error.status_code not in _ABOUT_THE_TEXT:
        return False
    said = f"{error.code} {error.message}".casefold()
    return succeeded or error.code == "content_filter" or any(words in said for words in _TOO_LONG)


def misconfigured(error: openai.APIStatusError, base_url: str, model: str) -> TeacherMisconfigured:
    """The error with the name of the setting to correct."""
    settings = {
        401: "teacher.api_key: the server does not accept the key",
        403: f"teacher.api_key: the key may not use teacher.model {model!r}",
        404: f"teacher.model {model!r} or teacher.base_url: the server does not know it",
        429: "teacher.api_key: its quota is used up",
    }
    refused = (
        f"teacher.model {model!r}: the server refuses the request; "
        "it must support response_format json_schema, and a refused "
    )
    what = settings.get(error.status_code, refused + "parameter can be left out (temperature, send_seed)")
    return TeacherMisconfigured(f"{what} ({base_url}, HTTP {error.status_code}: {error.message[:300]})")


def retry_after_s(error: BaseException | None, now: datetime | None = None) -> float | None:
    """Seconds the server asks us to wait (`Retry-After`: seconds or a date; `retry-after-ms`), `None` when it
    does not say. What is not a number, or is beyond a day, counts as a day."""
    asked = _asked(error, now)
    return None if asked is None else DAY_S if math.isnan(asked) else min(asked, DAY_S)


def _asked(error: BaseException | None, now: datetime | None) -> float | None:
    if not isinstance(error, openai.APIStatusError):
        return None
    headers = error.response.headers
    try:
        if "retry-after-ms" in headers:
            return max(0.0, float(headers["retry-after-ms"]) / 1000)
        return max(0.0, float(headers["retry-after"]))
    except KeyError:
        return None
    except ValueError:
        return _until(headers["retry-after"], now or datetime.now(UTC))


def _until(date: str, now: datetime) -> float | None:
    try:
        return max(0.0, (email.utils.parsedate_to_datetime(date) - now).total_seconds())
    except (TypeError, ValueError, OverflowError):
        return None
