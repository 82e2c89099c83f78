"""What traffic brings for the held-out set, and the set's versions, in the state store.

A question comes in with the batch of its answer (contract 2) and waits. `grow` gives the waiting ones a
version, all at once; what has a version keeps it, so that a version's questions are the same for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from agent.items import HeldOutItem
from streams.state import tables
from streams.state.store import StateStore
from streams.state.tables import REFUSED

Source = Literal["gold", "teacher"]
Identity = Callable[[Sequence[HeldOutItem]], str]
"""Of the questions that traffic brought, to the hash of the whole set."""


@dataclass(frozen=True)
class HeldOutVersion:
    """One version of a student's held-out set: `sha256` of all its items, how many there are, how many of
    them traffic brought, and after how many watched answers."""

    version: int
    sha256: str
    items: int
    grown: int
    answers: int


@dataclass(frozen=True)
class Reserved:
    """A question that traffic brought. `version` None: it waits for the next version."""

    item: HeldOutItem
    version: int | None


def reserved_row(student: str, item: HeldOutItem, source: Source) -> dict[str, object]:
    """The row of a question that waits. The same question twice counts once."""
    return {
        "student": student,
        "item_id": item.item_id,
        "item": item.model_dump_json(),
        "source": source,
        "version": None,
    }


class HeldOutStore:
    """One student's reserved questions and versions. Version 0 is the set without them."""

    def __init__(self, store: StateStore, student: str) -> None:
        self._store = store
        self._student = student

    def stamp(self) -> tuple[int, int]:
        """Changes whenever a question comes in, gets a version or is refused; cheap."""
        table = tables.held_out_items.c
        counts = sa.select(sa.func.count(), sa.func.count(table.version))
        with self._store.transaction(read_only=True) as connection:
            rows, settled = connection.execute(counts.where(table.student == self._student)).one()
        return int(rows), int(settled)

    def reserved(self) -> list[Reserved]:
        """All questions but the refused ones, oldest version first, waiting ones last."""
        table = tables.held_out_items.c
        query = (
            sa.select(table.item, table.version)
            .where(table.student == self._student, table.version.is_distinct_from(REFUSED))
            .order_by(table.version.is_(None), table.version, table.item_id)
        )
        with self._store.transaction(read_only=True) as connection:
            rows = connection.execute(query).all()
        return [Reserved(HeldOutItem.model_validate_json(item), version) for item, version in rows]

    def latest(self) -> HeldOutVersion | None:
        """The newest version; None while traffic has brought nothing."""
        table = tables.held_out_versions
        query = (
            sa.select(table).where(table.c.student == self._student).order_by(table.c.version.desc()).limit(1)
        )
        with self._store.transaction(read_only=True) as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            return None
        return HeldOutVersion(row.version, row.sha256, row.items, row.grown, row.answers)

    def outdate(self, skill: str, items: int) -> None:
        """So many questions of the skill are of before it drifted. Two processes may say so at once."""
        table = tables.held_out_drifts
        row = {"student": self._student, "skill": skill, "outdated": items}
        known = table.update().where(table.c.student == self._student, table.c.skill == skill)
        with self._store.transaction() as connection:
            connection.execute(known.values(outdated=items))
            self._store.insert_new(table, [row], connection)

    def outdated(self) -> dict[str, int]:
        """How many questions are of before the last drift, by skill that drifted."""
        table = tables.held_out_drifts.c
        query = sa.select(table.skill, table.outdated).where(table.student == self._student)
        with self._store.transaction(read_only=True) as connection:
            return {skill: items for skill, items in connection.execute(query)}

    def refuse(self, item_ids: Collection[str]) -> None:
        """Put waiting questions aside for good."""
        self._assign(sorted(item_ids), REFUSED)

    def grow(
        self, admitted: Sequence[HeldOutItem], base_items: int, identity: Identity, answers: int
    ) -> int | None:
        """Make the next version: what the latest one holds and `admitted`; its number, or None when another
        process has made that version meanwhile."""
        latest = self.latest()
        number = latest.version + 1 if latest else 1
        before = [known.item for known in self.reserved() if known.version is not None]
        grown = [*before, *admitted]
        row = {
            "student": self._student,
            "version": number,
            "sha256": identity(grown),
            "items": base_items + len(grown),
            "grown": len(grown),
            "answers": answers,
        }
        try:
            with self._store.transaction() as connection:
                connection.execute(tables.held_out_versions.insert(), row)
                self._assign_in(connection, [item.item_id for item in admitted], number)
        except IntegrityError:
            return None
        return number

    def _assign(self, item_ids: Sequence[str], version: int) -> None:
        with self._store.transaction() as connection:
            self._assign_in(connection, item_ids, version)

    def _assign_in(self, connection: sa.Connection, item_ids: Sequence[str], version: int) -> None:
        table = tables.held_out_items
        waiting = table.c.student == self._student, table.c.version.is_(None)
        named = table.update().where(*waiting, table.c.item_id == sa.bindparam("named"))
        if item_ids:
            connection.execute(named.values(version=version), [{"named": name} for name in item_ids])
