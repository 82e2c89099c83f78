"""The label cache in the state store."""

from __future__ import annotations

import hashlib
import json

import sqlalchemy as sa

from agent.catalog import SkillCatalog
from streams.state import tables
from streams.state.store import StateStore


class StoredLabels:
    """The label cache in the state store: a question's needed skills, once per text and catalog.

    It is part of the profile's truth, not a second memory of the teacher's replies: a question keeps its
    skills when teacher or prompt change, and every worker sees the same.
    """

    def __init__(self, store: StateStore, catalog: SkillCatalog) -> None:
        self._store = store
        self._catalog = hashlib.sha256("\n".join(catalog.names).encode()).hexdigest()
        self._memory: dict[str, tuple[str, ...]] = {}

    def get(self, question: str) -> tuple[str, ...] | None:
        """The labels of a question, or None when the teacher was never asked."""
        if question in self._memory:
            return self._memory[question]
        table = tables.labels.c
        query = sa.select(table.skills).where(
            table.question_hash == _digest(question), table.catalog_hash == self._catalog
        )
        with self._store.transaction(read_only=True) as connection:
            found = connection.execute(query).scalar_one_or_none()
        return None if found is None else tuple(json.loads(found))

    def put(self, question: str, skills: tuple[str, ...]) -> None:
        """Remember labels; they reach the database with `flush`."""
        self._memory[question] = skills

    def flush(self) -> None:
        """Write what was learnt since the last time, in one transaction, if there is anything."""
        if not self._memory:
            return
        rows = [
            {"question_hash": _digest(question), "catalog_hash": self._catalog, "skills": json.dumps(skills)}
            for question, skills in self._memory.items()
        ]
        with self._store.transaction() as connection:
            self._store.insert_new(tables.labels, rows, connection)
        self._memory.clear()


def _digest(question: str) -> str:
    return hashlib.sha256(question.encode(errors="surrogatepass")).hexdigest()
