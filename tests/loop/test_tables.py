"""Tables for people."""

import io

from rich.console import Console

from loop.tables import verdict_table
from training.verdict import GateVerdict, Kind, Row


def row(name: str, kind: Kind, gained: float, lost: float, passed: bool = True) -> Row:
    return Row(
        name=name, kind=kind, items=60, champion=0.5, challenger=0.5, gained=gained, lost=lost, p_value=0.1,
        lower_bound=-0.1, passed=passed,
    )  # fmt: skip


def test_of_pairs_those_that_lost_are_shown_and_the_others_counted() -> None:
    rows = (row("add", "skill", 3, 1), row("add + gcd", "pair", 1, 3), row("add + max", "pair", 2, 2))
    rows += (row("gcd + max", "pair", 2, 2, passed=False),)
    said = Console(file=io.StringIO(), width=200)
    said.print(verdict_table(GateVerdict(promote=True, reasons=("fine",), table=rows)))
    told = said.file.getvalue()  # type: ignore[attr-defined]
    assert "add + gcd" in told and "gcd + max" in told and "add + max" not in told
    assert "and 1 pairs of skills that have lost no more than gained" in told
