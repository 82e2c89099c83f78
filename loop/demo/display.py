"""What the demo shows while it runs: a live screen on a terminal, plain lines elsewhere."""

from __future__ import annotations

from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from loop.tables import accuracy_line, profile_table
from loop.workers.decide import Standing

LINES = 14


class Display:
    """Listens to the loop. `questions` is the length of the stream."""

    def __init__(self, console: Console, questions: int) -> None:
        self._console = console
        self._questions = questions
        self._answered = 0
        self._phase = ""
        self._standing: Standing | None = None
        self._lines: list[Text] = []
        self._said: set[str] = set()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TimeElapsedColumn(),
        )
        self._bars = Progress(*columns, TimeRemainingColumn(), console=console)
        self._stream_bar = self._bars.add_task("questions answered", total=questions)
        self._curate_bar = self._bars.add_task("curating", total=1, visible=False)
        self._train_bar = self._bars.add_task("training", total=1, visible=False)
        self._live = Live(get_renderable=self._render, console=console, refresh_per_second=2, transient=True)

    def __enter__(self) -> Display:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._console.is_terminal:
            self._live.stop()
            self._console.print(*self._lines, sep="\n")  # the live screen is gone: leave what happened

    def answered(self, total: int, phase: str) -> None:
        """So many questions have been answered."""
        self._answered = total
        self._bars.update(self._stream_bar, completed=total)
        if phase != self._phase:
            self._say(f"question {total}: the traffic is now {phase!r}", "bold")
            self._phase = phase
        if not self._console.is_terminal and self._standing and total % 500 == 0:
            self._console.print(
                f"  {total} of {self._questions} answered, {accuracy_line(self._standing.profile)}",
                highlight=False,
            )

    def __call__(self, event: str, detail: dict[str, Any]) -> None:
        """The loop's listener."""
        show = getattr(self, f"_on_{event}", None)
        if show is not None:
            show(detail)

    def _on_standing(self, detail: dict[str, Any]) -> None:
        standing: Standing = detail["standing"]
        self._standing = standing
        for skill, state in standing.alarms.items():
            key = f"{standing.version}/{skill}/{state.alarm_bucket}"
            if key not in self._said:
                self._said.add(key)
                self._say(
                    "drift alarm: "
                    f"version {standing.version} misses {skill!r} more often than a mastered skill",
                    "yellow",
                )
        if standing.decision.kind != "wait":
            decision = standing.decision
            self._say(f"question {self._answered}: the policy opens a round: {decision.reasons[0]}", "cyan")
            for reason in decision.reasons[1 : len(decision.skills) + 2]:
                self._say(f"  {reason}", "cyan")

    def _on_curating(self, detail: dict[str, Any]) -> None:
        done, total = detail["done"], detail["total"]
        self._bars.update(self._curate_bar, total=total, completed=done, visible=done < total)
        self._bars.update(self._curate_bar, description=f"curating, {detail['kind']}")

    def _on_curated(self, detail: dict[str, Any]) -> None:
        manifest = detail["manifest"]
        self._say(
            f"{detail['round_id']}: {manifest['examples']} examples {manifest['per_strategy']}, "
            f"dropped {detail['curation']['dropped']}"
        )

    def _on_training(self, detail: dict[str, Any]) -> None:
        self._bars.update(self._train_bar, visible=True, total=detail["steps"], completed=detail["step"])
        self._bars.update(self._train_bar, description=f"training, loss {detail['loss']:.3f}")

    def _on_trained(self, detail: dict[str, Any]) -> None:
        self._bars.update(self._train_bar, visible=False)
        self._say(
            f"{detail['round_id']}: trained {detail['decision']['steps']} steps, "
            f"{detail['tokens']} tokens, loss {detail['loss']:.3f}"
        )

    def _on_evaluating(self, detail: dict[str, Any]) -> None:
        who = (
            f"version {detail['version']}"
            if "version" in detail
            else f"the challenger of {detail['round_id']}"
        )
        self._say(f"evaluating {who} on {detail['items']} held-out items", "dim")

    def _on_judged(self, detail: dict[str, Any]) -> None:
        verdict = detail["verdict"]
        style = "green" if verdict["promote"] else "red"
        shown, more = verdict["reasons"][:2], len(verdict["reasons"]) - 2
        told = "; ".join(shown) + (f"; and {more} more reasons" if more > 0 else "")
        self._say(f"{detail['round_id']}: gate {'open' if verdict['promote'] else 'closed'}: {told}", style)

    def _on_promoted(self, detail: dict[str, Any]) -> None:
        self._say(
            f"{detail['round_id']}: version {detail['version']} is champion and serves from now on",
            "bold green",
        )

    def _on_rejected(self, detail: dict[str, Any]) -> None:
        self._say(f"{detail['round_id']}: rejected, the champion stays", "bold red")

    def _on_failed(self, detail: dict[str, Any]) -> None:
        self._say(f"{detail['round_id']}: failed: {detail['error']}", "bold red")

    def _say(self, line: str, style: str = "") -> None:
        if self._console.is_terminal:
            self._lines.append(Text(line, style=style))
        else:
            self._console.print(Text(line, style=style), soft_wrap=True)

    def _render(self) -> Group:
        parts: list[Any] = [self._bars]
        if self._standing is not None:
            parts.append(profile_table(self._standing.profile, set(self._standing.alarms)))
            parts.append(Panel(Text(self._standing.decision.reasons[0]), title="policy"))
        parts.append(Panel(Group(*self._lines[-LINES:]), title="what happened"))
        return Group(*parts)
