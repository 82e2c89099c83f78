"""Errors as OpenAI's API says them. What an exception says stays in the log."""

from __future__ import annotations

import json

from serving.engine import EngineError


class Refusal(EngineError):
    """A request that gets an error; `status` and `code` as OpenAI's API has them."""

    def __init__(self, status: int, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param

    def body(self) -> bytes:
        """The error's JSON."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        if self.status == 429:
            kind = "rate_limit_error"
        error = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return json.dumps({"error": error}).encode()


class ClientGone(EngineError):
    """The user hung up, or reads too slowly to be waited for."""
