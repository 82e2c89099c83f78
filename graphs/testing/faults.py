"""Faults to order for the scripted teacher server, each for a number of calls.

`KIND[:COUNT][@PURPOSE]`: the first COUNT calls (default 1, `*` for all) of a purpose (default: any) go wrong
in this way.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from agent.items import JsonObject

Kind = Literal[
    "429",
    "500",
    "400",
    "401",
    "quota",
    "too_long",
    "timeout",
    "drop",
    "garbage",
    "truncated",
    "length",
    "refusal",
    "content_filter",
    "off_list",
    "fake_evidence",
    "no_usage",
    "negative_usage",
    "drip",
    "redirect",
]
OFF_LIST = "mind reading"
FAKE_EVIDENCE = "words that no student wrote"
STATUS = {"redirect": 307, "429": 429, "500": 500, "400": 400, "401": 401, "quota": 429, "too_long": 400}
CODES = {
    "429": "rate_limit_exceeded",
    "401": "invalid_api_key",
    "quota": "insufficient_quota",
    "too_long": "context_length_exceeded",
}


@dataclass(frozen=True)
class Order:
    """One kind of fault for the next `count` calls (`None`: all) of `purpose` (empty: any).

    >>> Order.parse("429:2@label")
    Order(kind='429', count=2, purpose='label')
    """

    kind: Kind
    count: int | None = 1
    purpose: str = ""

    @classmethod
    def parse(cls, text: str) -> Order:
        """Read `KIND[:COUNT][@PURPOSE]`. Raises `ValueError` with the known kinds."""
        rest, _, purpose = text.partition("@")
        kind, _, count = rest.partition(":")
        for known in get_args(Kind):
            if known == kind:
                return cls(known, None if count == "*" else int(count or 1), purpose)
        raise ValueError(
            f"unknown fault {kind!r}; choose from {', '.join(get_args(Kind))}, written KIND[:COUNT][@PURPOSE]"
        )


class Faults:
    """What is still to go wrong; each call takes at most one fault."""

    def __init__(self, orders: Iterable[Order] = ()) -> None:
        self._lock = threading.Lock()
        self._left = [[order, order.count] for order in orders]

    def take(self, purpose: str) -> Kind | None:
        """The fault of the next call with this purpose."""
        with self._lock:
            for entry in self._left:
                order, left = entry
                if isinstance(order, Order) and order.purpose in ("", purpose) and left != 0:
                    entry[1] = None if left is None else int(str(left)) - 1
                    return order.kind
        return None


def spoil(kind: Kind | None, text: str) -> str:
    """A reply's text with a fault of content."""
    if kind in ("truncated", "length"):
        return text[: max(1, len(text) // 2)]
    if kind in ("refusal", "content_filter"):
        return ""
    if kind not in ("off_list", "fake_evidence"):
        return text
    reply: JsonObject = json.loads(text)
    for key in ("skills", "missing"):
        if kind == "off_list" and isinstance(reply.get(key), list):
            reply[key] = [*reply[key], OFF_LIST]
    if kind == "off_list" and reply.get("verdict") == "correct":
        reply |= {"verdict": "incorrect", "missing": [OFF_LIST]}
    if kind == "fake_evidence" and "evidence" in reply:
        reply |= {"verdict": "incorrect", "evidence": FAKE_EVIDENCE}
    return json.dumps(reply)
