"""Operating characteristics of the gate: how often `training.gate.judge` itself opens or closes on simulated
rounds.

    python -m benchmarks.gate --json gate.json          # --quick: 50 cases a cell instead of 500

The rounds, with their scenarios and variants, are in benchmarks/gate_rounds.py. "caught" counts only cases
closed by a loss, not those closed for want of a proven gain. What is asked of each cell: `asked`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from benchmarks.gate_rounds import FLIPS, VARIANTS, Cell, Tally, run
from training.gate import GateSettings

CATALOGS, SIZES = (13, 112, 500), (500, 1_000, 5_000)


def asked(cell: Cell) -> str | None:
    """What the issue asks for, such as ">= 0.9"; None where nothing is."""
    if cell.scenario == "equal":
        return "<= 0.05"
    if cell.scenario in ("good", "good, later"):
        return ">= 0.9" if cell.items >= 1_000 else None
    return None if cell.scenario == "good, any targets" else ">= 0.95"


def cells(quick: bool) -> list[Cell]:
    """Every cell asked for, those with the same items together; with `quick` only flips of 5 to 15 %."""
    chosen = []
    for variant in VARIANTS:
        for skills in CATALOGS:
            for items in (
                SIZES
                if variant == "single"
                else SIZES[1:]
                if variant in ("chains", "mixed", "sampled")
                else SIZES[-1:]
            ):
                chosen += [
                    Cell(scenario, variant, skills, items, rate)
                    for scenario, rate in _asked(variant, items, quick)
                ]
    return sorted(chosen, key=lambda cell: cell.scenario.startswith("creeping"))  # the slow ones last


def _asked(variant: str, items: int, quick: bool) -> Iterator[tuple[str, str]]:
    """The scenarios, with their flips, of a variant and a number of items."""
    usual = "5-15 %"
    several = list(FLIPS) if variant == "single" and not quick else [usual]
    for rate in several:
        yield "good", rate
    for scenario in ("20 on one", "10 on one", *(["3 on all"] if items == SIZES[-1] else [])):
        for rate in several[-2:]:  # the more flips, the harder
            yield scenario, rate
    if variant in ("chains", "mixed"):
        yield "20 on one pair", usual
    if variant == "mixed":
        yield "10 on several", usual
    yield "equal", usual
    if variant == "single":
        yield "good, any targets", usual
    if items >= 1_000:
        yield "good, later", usual
    if items == SIZES[-1] and variant in ("single", "chains", "mixed", "sampled"):
        yield "creeping", usual
    if items == SIZES[-1] and variant == "single":
        yield "creeping, protected", usual


def result(cell: Cell, tally: Tally) -> dict[str, Any]:
    """A cell as a row of the report; `reached` is None where nothing is asked or nothing could be
    simulated.
    """
    opens = cell.scenario in ("good", "good, any targets", "good, later", "equal")
    rate = (tally.opened if opens else tally.lost) / tally.cases if tally.cases else None
    wanted = asked(cell)
    reached = None
    if rate is not None and wanted is not None:
        relation, bound = wanted.split()
        reached = rate >= float(bound) if relation == ">=" else rate <= float(bound)
    row = {**vars(cell), "cases": tally.cases, "figure": "opened" if opens else "caught", "rate": rate}
    row |= {"asked": wanted, "reached": reached, "closed_by": tally.closed_by}
    if cell.scenario.startswith("creeping") and tally.cases:
        row["never_10_below_best"] = tally.within / tally.cases
    return row


def report(rows: Sequence[dict[str, Any]], console: Console) -> None:
    """The rows as a table, those that miss what is asked in red."""
    table = Table(title="The gate's operating characteristics", title_justify="left")
    named = ("scenario", "variant", "skills", "items", "flips", "cases", "figure")
    for name in (*named, "rate", "asked", "never 10 below"):
        table.add_column(name)
    for row in rows:
        if row["rate"] is not None:
            within = f"{row['never_10_below_best']:.1%}" if "never_10_below_best" in row else ""
            shown = [str(row[name]) for name in named]
            style = "red" if row["reached"] is False else None
            table.add_row(*shown, f"{row['rate']:.1%}", row["asked"] or "", within, style=style)
    console.print(table)


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the results here.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="50 cases a cell, one range of flips.")] = False,
    cases: Annotated[int | None, typer.Option(help="Cases a cell.")] = None,
    only: Annotated[str, typer.Option(help="Only cells whose scenario or variant contains this.")] = "",
    seed: Annotated[int, typer.Option(help="Of the random numbers.")] = 0,
) -> None:
    """Simulate every cell through `judge` and say what was reached."""
    console, count = Console(), cases or (50 if quick else 500)
    chosen = [cell for cell in cells(quick) if only in cell.scenario or only in cell.variant]
    rows, started = [], time.perf_counter()
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
    ) as progress:
        task = progress.add_task("cells", total=len(chosen) * count)
        for cell in chosen:
            progress.update(
                task, description=f"{cell.scenario}, {cell.variant}, {cell.skills} skills, {cell.items} items"
            )
            for tally in run(cell, count, seed):
                if tally is None:
                    progress.advance(task)
                else:
                    rows.append(result(cell, tally))
                    write(json_file, rows, count, seed)
    report(rows, console)
    missed = [row for row in rows if row["reached"] is False]
    console.print(
        f"{len(rows)} cells, {len(missed)} miss what is asked, {time.perf_counter() - started:.0f} s"
    )


def write(path: Path | None, rows: Sequence[dict[str, Any]], cases: int, seed: int) -> None:
    """The rows so far, after each cell: a long run that is stopped has not been for nothing."""
    if path:
        path.write_text(
            json.dumps(
                {"cases": cases, "seed": seed, "settings": GateSettings().model_dump(), "rows": rows},
                indent=1,
            )
        )


if __name__ == "__main__":
    typer.run(main)
