"""Where curation rounds keep their place: LangGraph checkpoints in a SQLite file, read back as plain data
only."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.sqlite import SqliteSaver

BUSY_TIMEOUT_S = 30.0


@contextmanager
def sqlite_checkpoints(path: Path) -> Iterator[SqliteSaver]:
    """A checkpointer on the file `path`, which is made when it is missing.

    Reading a checkpoint never imports or calls anything beyond LangGraph's own safe types, whatever
    `LANGGRAPH_STRICT_MSGPACK` says: that variable is read once at import, too late for a library to rely on.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # LangGraph's threads share the connection; SqliteSaver guards it with a lock.
    with closing(sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, check_same_thread=False)) as connection:
        yield SqliteSaver(connection, serde=JsonPlusSerializer(allowed_msgpack_modules=None))
