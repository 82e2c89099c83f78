"""What the demo shows while it runs: a live screen on a terminal, plain lines elsewhere."""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from agent.standing import Standing
from loop.demo.lines import round_line
from loop.tables import accuracy_line, profile_table
from loop.workers.messages import Advanced, Curating, Evaluating, Message, Postponed, Training, Watched

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

    def __call__(self, message: Message) -> None:
        """The loop's listener."""
        match message:
            case Watched(standing):
                self._watched(standing)
            case Curating(_, kind, done, total):
                self._bars.update(self._curate_bar, total=total, completed=done, visible=done < total)
                self._bars.update(self._curate_bar, description=f"curating, {kind}")
            case Training(_, step, steps, loss):
                self._bars.update(self._train_bar, visible=True, total=steps, completed=step)
                self._bars.update(self._train_bar, description=f"training, loss {loss:.3f}")
            case Evaluating(who, items):
                self._say(f"evaluating {who} on {items} held-out items", "dim")
            case Advanced(round_):
                self._bars.update(self._train_bar, visible=False)
                self._say(*round_line(round_))
            case Postponed(round_id, failures, error, wait_s):
                self._say(f"{round_id}: failure {failures}, tried again in {wait_s:g} s: {error}", "red")

    def _watched(self, standing: Standing) -> None:
        self._standing = standing
        for alarm in standing.drifts:
            key = f"{standing.version}/{alarm.kind}/{alarm.skill}/{alarm.bucket}"
            if key not in self._said:
                self._said.add(key)
                before, after = (
                    100 * counts.missing / counts.needed for counts in (alarm.before, alarm.after)
                )
                self._say(
                    f"drift alarm: version {standing.version}, {alarm.kind} of {alarm.skill!r}: "
                    f"{before:.0f} % before, {after:.0f} % since",
                    "yellow",
                )
        decision = standing.decision
        if decision.kind != "wait":
            self._say(f"question {self._answered}: the policy opens a round: {decision.reasons[0]}", "cyan")
            for reason in decision.reasons[1 : len(decision.skills) + 2]:
                self._say(f"  {reason}", "cyan")

    def _say(self, line: str, style: str = "") -> None:
        if self._console.is_terminal:
            self._lines.append(Text(line, style=style))
        else:
            self._console.print(Text(line, style=style), soft_wrap=True)

    def _render(self) -> Group:
        parts: list[RenderableType] = [self._bars]
        if self._standing is not None:
            parts.append(profile_table(self._standing.profile, set(self._standing.alarms)))
            parts.append(Panel(Text(self._standing.decision.reasons[0]), title="policy"))
        parts.append(Panel(Group(*self._lines[-LINES:]), title="what happened"))
        return Group(*parts)
