"""How a round's files are named in the artifact store, so that hosts share no folder.

A file lies under its own hash: what was stored once is never replaced by something else, not even by a worker
that was frozen and wakes after its successor. The hash is in the round's record; a local file is a copy that
may be deleted at any time (docs/registry.md).
"""

from __future__ import annotations

from pathlib import PurePosixPath

ADAPTER = "adapter"
HASH_DIGITS = 12


def stored_name(artifact: str, sha256: str) -> str:
    """Where the content of an artifact with this hash lies.

    >>> stored_name("data/train.jsonl", "0123456789abcdef")
    'data/train-0123456789ab.jsonl'
    >>> stored_name("adapter", "0123456789abcdef")
    'adapter-0123456789ab'
    """
    path = PurePosixPath(artifact)
    return str(path.with_name(f"{path.stem}-{sha256[:HASH_DIGITS]}{path.suffix}"))
