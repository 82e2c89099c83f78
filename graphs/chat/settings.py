"""Settings of the language-model teacher, and what a request to it can lead to."""

from __future__ import annotations

from pydantic import Field, SecretStr, field_validator

from agent.budget import Price
from agent.items import Frozen
from agent.settings import Settings

DEFAULT_TEXT_CHARS = 24_000


class ChatSettings(Settings):
    """Any OpenAI-compatible server. `base_url` ends in `/v1`; an empty `api_key` suits servers that ask for
    none.

    `temperature` is for judging (labels, diagnoses, the catalog), `creative_temperature` for writing and
    solving; `None` leaves it to the server, for models that refuse the parameter. `send_seed` sends a seed
    with every creative request, which makes samples differ on a server that samples deterministically. A text
    longer than `max_text_chars` is shown with its middle left out. Without a `price` every call is an error:
    give prices, or `free = true`. `max_concurrency` bounds the requests on the wire.

    >>> ChatSettings(base_url="http://127.0.0.1:8000/v1", model="m", price=Price(free=True)).max_concurrency
    8
    """

    base_url: str
    model: str = Field(min_length=1)
    api_key: SecretStr = SecretStr("")
    timeout_s: float = Field(default=60.0, gt=0)
    max_concurrency: int = Field(default=8, gt=0)
    requests_per_minute: float | None = Field(default=None, gt=0)
    max_attempts: int = Field(default=6, gt=0)
    backoff_s: float = Field(default=1.0, gt=0)
    max_backoff_s: float = Field(default=60.0, gt=0)
    temperature: float | None = Field(default=0.0, ge=0, le=2)
    creative_temperature: float | None = Field(default=0.7, ge=0, le=2)
    max_tokens: int = Field(default=2048, gt=0)
    max_text_chars: int = Field(default=DEFAULT_TEXT_CHARS, gt=0)
    send_seed: bool = True
    price: Price | None = None

    @property
    def threads(self) -> int:
        """How many callers keep `max_concurrency` requests on the wire: some prepare theirs or read a reply
        meanwhile."""
        return self.max_concurrency + 2

    @field_validator("base_url")
    @classmethod
    def _http(cls, url: str) -> str:
        if not url.startswith(("http://", "https://")):
            raise ValueError(
                f"base_url {url!r} must begin with http:// or https://, for example http://127.0.0.1:8000/v1"
            )
        return url.rstrip("/")


def callers(chat: ChatSettings | None) -> int:
    """How many threads call a teacher, the language model of `chat` or one in this process."""
    return chat.threads if chat else 8


class RequestSampling(Frozen):
    """What of a request changes the reply besides its text. `sample` numbers independent replies to one text.

    `seed` is what the caller asked with; it is sent to the server where `send_seed` says so.
    """

    temperature: float | None
    max_tokens: int
    seed: int | None = None
    sample: int = 0


class ChatReply(Frozen):
    """What the server said: the text, how it ended, and its tokens. It is what the cache holds, with the
    `purpose` of the request.

    Where the server does not count its tokens (`metered` false), they are the most the call can have used.
    """

    text: str
    purpose: str = ""
    finish: str = "stop"
    prompt_tokens: int = Field(default=0, ge=0)
    completion_tokens: int = Field(default=0, ge=0)
    metered: bool = True

    @property
    def refused(self) -> bool:
        """The model, or a filter before it, will not answer: asking again changes nothing."""
        return self.finish in ("refusal", "content_filter", "rejected")
