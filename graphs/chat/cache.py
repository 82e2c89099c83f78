"""Replies that were paid for once, in a SQLite file: asking the same again costs nothing, whatever died in
between.

The key is everything that shapes a reply: prompt version, model, messages, schema, sampling parameters and
sample number. A reply is kept as the server gave it and checked again when it is read, so a stricter check
needs no new calls. Replies that could not be used are kept too: a replay is free as a whole. To ask again,
raise `PROMPT_VERSION` or delete the file.

1. The ledger's sink is called first, then the reply is stored, then it is used.
2. The write is committed (WAL) before `put` returns: it survives SIGKILL.
3. Threads share one connection under a lock; processes share the file.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from pathlib import Path
from typing import Protocol

from graphs.chat.prompts import PROMPT_VERSION, Ask
from graphs.chat.settings import ChatReply, RequestSampling

BUSY_TIMEOUT_S = 30.0


class ReplyCache(Protocol):
    """Remembers replies by key. Called from several threads."""

    def get(self, key: str) -> ChatReply | None: ...

    def put(self, key: str, reply: ChatReply) -> None: ...


def reply_key(model: str, ask: Ask, turns: list[tuple[str, str]], sampling: RequestSampling) -> str:
    """The key of a request: equal for equal requests in every process and on every machine."""
    parts: list[object] = [PROMPT_VERSION, model, ask.purpose, turns, ask.schema, sampling.model_dump()]
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


class MemoryReplies:
    """A cache that lasts as long as the process."""

    def __init__(self) -> None:
        self._replies: dict[str, ChatReply] = {}

    def get(self, key: str) -> ChatReply | None:
        return self._replies.get(key)

    def put(self, key: str, reply: ChatReply) -> None:
        self._replies[key] = reply


class SqliteReplies:
    """The durable cache. Close it, or use it as a context manager."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(
            path, timeout=BUSY_TIMEOUT_S, check_same_thread=False, isolation_level=None
        )
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=NORMAL")
        self._connection.execute(
            "CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT NOT NULL) WITHOUT ROWID"
        )

    def get(self, key: str) -> ChatReply | None:
        with self._lock:
            row = self._connection.execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone()
        return None if row is None else ChatReply.model_validate_json(row[0])

    def put(self, key: str, reply: ChatReply) -> None:
        """Keep a reply; the first one stays when two processes asked at the same time."""
        with self._lock:
            self._connection.execute(
                "INSERT OR IGNORE INTO replies VALUES (?, ?)", (key, reply.model_dump_json())
            )

    def __len__(self) -> int:
        with self._lock:
            return int(self._connection.execute("SELECT count(*) FROM replies").fetchone()[0])

    def count(self, purpose: str) -> int:
        """How many replies to requests of a purpose are kept."""
        query = "SELECT count(*) FROM replies WHERE json_extract(reply, '$.purpose') = ?"
        with self._lock:
            return int(self._connection.execute(query, (purpose,)).fetchone()[0])

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def __enter__(self) -> SqliteReplies:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
