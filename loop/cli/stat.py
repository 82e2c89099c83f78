"""`skillloop stat`: the offline method on files. Mounted by loop/cli/main.py; heavy imports
happen inside the command."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loop.errors import LoopError

if TYPE_CHECKING:
    from rich.console import Console

    from agent.budget import Price
    from loop.offline.estimate import Line

CHOICES = (
    "stat-sel, stat-syn, original, augment, hard, embed-sel, embed-syn, random, question-skill, shuffled, mix"
)


class NotConfirmed(LoopError):
    """Money would be spent, and nobody has agreed to it."""


def stat(
    config: Annotated[Path, typer.Option("--config", help="TOML configuration; examples in configs/stat/.")],
    run: Annotated[
        Path,
        typer.Option(
            "--run", help="The run's directory: results, answers, ledger. Started again, it resumes."
        ),
    ],
    until: Annotated[
        str, typer.Option("--until", help="The last stage to run: catalog ... dataset, train, evaluate.")
    ] = "dataset",
    first: Annotated[
        str | None, typer.Option("--from", help="Run this stage and all later ones again.")
    ] = None,
    strategy: Annotated[
        str | None, typer.Option("--strategy", help=f"Overrides the configured strategy: {CHOICES}.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Spend without asking for confirmation.")] = False,
) -> None:
    """Make a skill-targeted data set from questions and a student's answers (STAT).

    Then, if asked to, train on it and measure the student before and after, stage by stage.
    """
    from loop.cli.main import open_console
    from loop.offline import pipeline
    from loop.offline.config import load_stat
    from loop.offline.estimate import estimate, price_of
    from loop.offline.opening import open_bench
    from loop.offline.show import Watch, show_outcome

    loaded = load_stat(config, os.environ)
    console = open_console()
    for name in (until, first or until):
        pipeline.check_stage(name)
    with Watch(console) as watch, open_bench(loaded, run, _strategy(strategy), watch.progress) as bench:
        if first is not None:
            pipeline.forget_from(bench, first)
        lines = estimate(bench, until, pipeline.standing(bench))
        _agree(console, lines, price_of(loaded), loaded.budget.usd_per_round, yes)
        pipeline.run_stages(bench, until, watch.stage)
        show_outcome(console, bench)


def _strategy(name: str | None) -> Any:
    from agent.strategies import STRATEGIES
    from loop.config import ConfigError

    if name is not None and name not in STRATEGIES:
        raise ConfigError(f"unknown strategy {name!r}; strategies are {', '.join(STRATEGIES)}")
    return name


def _agree(console: Console, lines: list[Line], price: Price, cap_usd: float | None, yes: bool) -> None:
    """Show the estimate; return when it costs nothing, was agreed to beforehand, or is agreed to now."""
    from loop.offline.estimate import total
    from loop.offline.show import show_estimate

    if lines:
        show_estimate(console, lines, price, cap_usd)
    if not lines or price.free or yes:
        return
    usd = total(lines, price).usd
    if not console.is_terminal:
        raise NotConfirmed(
            f"this would cost about {usd:.2f} USD; pass --yes to agree, or run it in a terminal"
        )
    typer.confirm(f"Spend about {usd:.2f} USD?", abort=True)
