"""What the user sees of a run: the estimate, progress bars, what each stage made, the profile and the
selection's figures."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from agent.budget import Price
from loop.offline.bench import STUDENT, Bench
from loop.offline.estimate import Line, total
from loop.offline.folder import StageManifest
from loop.offline.pipeline import Event
from loop.offline.records import ProfileRow
from streams.state.ledger import paid

SHOWN_SKILLS = 15


def show_estimate(console: Console, lines: Sequence[Line], price: Price, cap_usd: float | None) -> None:
    """The table of what is left to ask; assumed numbers are marked."""
    table = Table(
        "teacher calls",
        "calls",
        "prompt tokens",
        "completion tokens",
        "USD",
        title="Estimate of what is left to ask",
    )
    for line in lines:
        table.add_row(
            line.kind + (" (assumed)" if line.assumed else ""),
            f"{line.calls:,}",
            f"{line.prompt_tokens:,}",
            f"{line.completion_tokens:,}",
            f"{line.usd(price):.2f}",
        )
    usage = total(lines, price)
    table.add_row(
        "all",
        f"{usage.calls:,}",
        f"{usage.prompt_tokens:,}",
        f"{usage.completion_tokens:,}",
        f"{usage.usd:.2f}",
        style="bold",
    )
    console.print(table)
    if not price.free:
        console.print(
            f"cap: {'none' if cap_usd is None else f'{cap_usd:.2f} USD'} for the whole run", highlight=False
        )


class Watch:
    """Progress bars, one for each kind of work, and one line for each stage. A context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        columns = (
            TextColumn("{task.description:12}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=console, transient=True)
        self._bars: dict[str, TaskID] = {}

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def progress(self, kind: str, done: int, total: int) -> None:
        """Listener of `loop.offline.journal.Runner`."""
        self._progress.start()  # not before there is something to show: a question to the user may come first
        if kind not in self._bars:
            self._bars[kind] = self._progress.add_task(kind, total=total)
        self._progress.update(self._bars[kind], completed=done, total=total)

    def stage(self, event: Event, stage: str, manifest: StageManifest | None) -> None:
        """Listener of `loop.offline.pipeline.run_stages`."""
        if manifest is None:
            return
        figures = ", ".join(f"{name} {value:g}" for name, value in list(manifest.figures.items())[:6])
        mark = "[dim]kept[/]" if event == "kept" else "[green]done[/]"
        told = f"{mark}  [bold]{stage}[/]  {manifest.rows} rows: {escape(figures)}"
        self._console.print(told, highlight=False, markup=True)
        for note in manifest.notes:
            self._console.print(f"      {note}", highlight=False, markup=False)


def show_outcome(console: Console, bench: Bench) -> None:
    """The profile's first skills, where the results lie, and what was paid."""
    if bench.folder.manifest("profile"):
        console.print(profile_table(bench.folder.rows("profile", ProfileRow)))
    manifest = bench.folder.manifest(bench.named("dataset"))
    if manifest is not None:
        console.print(
            f"data set: {bench.folder.path(manifest.stage)} ({manifest.rows} pairs; card beside it)",
            highlight=False,
            soft_wrap=True,
        )
    usage = paid(bench.ledger, STUDENT)
    console.print(
        f"paid so far: {usage.calls} calls, "
        f"{usage.prompt_tokens + usage.completion_tokens} tokens, {usage.usd:.4f} USD",
        highlight=False,
    )


def profile_table(rows: Sequence[ProfileRow]) -> Table:
    """The skills most often missing."""
    table = Table(
        "skill",
        "missing",
        "needed",
        "miss rate",
        "share",
        "pool",
        title=f"Missing-Skill-Profile, first {SHOWN_SKILLS}",
    )
    for row in rows[:SHOWN_SKILLS]:
        table.add_row(
            row.skill,
            str(row.missing),
            str(row.needed),
            f"{row.miss_rate:.2f}",
            f"{row.share:.2f}",
            str(row.pool),
        )
    return table
