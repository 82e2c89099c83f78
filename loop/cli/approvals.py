"""Commands for what waits for a person (`rounds.approve`). Everything heavy is imported inside."""

from __future__ import annotations

import getpass
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loop.cli.log import DEFAULT_DIR, ConfigOption, DirOption

if TYPE_CHECKING:
    from loop.config import Config
    from streams.state.approvals import ApprovalAsked, ApprovalStore

RULE_WIDTH = 80
approvals_app = typer.Typer(
    no_args_is_help=True, help="What waits for a person: a round's data, or a version that is to be deployed."
)
ReasonOption = Annotated[
    str | None, typer.Option("--reason", help="Why; asked for on a terminal, and needed in a script.")
]
ByOption = Annotated[str | None, typer.Option("--by", help="Who decides. Default: the user of this process.")]


def signed(reason: str | None, by: str | None) -> tuple[str, str]:
    """The reason and the person of a decision by hand."""
    if reason is None and not sys.stdin.isatty():
        raise typer.BadParameter("say why: --reason TEXT")
    reason = typer.prompt("Why?") if reason is None else reason
    if not reason.strip():
        raise typer.BadParameter("the reason is empty")
    return reason, by or f"{_user()}@{socket.gethostname()}"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return f"uid {os.getuid()}"


@approvals_app.command("list")
def approvals_list(directory: DirOption = DEFAULT_DIR, config: ConfigOption = None) -> None:
    """List what waits for a decision."""
    from loop.cli.main import load_config, open_console

    _, waiting = _pending(load_config(config), directory)
    console = open_console()
    for asked in waiting:
        console.print(
            f"{asked.round_id}: {_what(asked)}, since {asked.at:%Y-%m-%d %H:%M} UTC", highlight=False
        )
    if not waiting:
        console.print("nothing waits for a person")


@approvals_app.command("show")
def approvals_show(round_id: str, directory: DirOption = DEFAULT_DIR, config: ConfigOption = None) -> None:
    """Show what is to be decided: samples of the data, or the gate's table."""
    from rich.rule import Rule

    from loop.cli.main import load_config, open_console
    from loop.cli.show_rounds import show_round

    loaded, console = load_config(config), open_console()
    _, asked = _asked(loaded, directory, round_id)
    console.print(f"{round_id}: {_what(asked)}?", highlight=False)
    if asked.subject == "deploy":
        show_round(loaded, directory, round_id, console)
        return
    console.print_json(data=asked.shown["report"])
    for sample in asked.shown["samples"]:
        provenance = sample["provenance"]
        origin = " ".join(filter(None, (provenance["strategy"], provenance.get("skill"))))
        console.print(Rule(origin, align="left", style="dim"), width=RULE_WIDTH)
        console.print(sample["prompt"], markup=False, highlight=False)
        console.print(sample["completion"], markup=False, highlight=False, style="cyan")
    shown = len(asked.shown["samples"])
    console.print(f"{shown} of {asked.shown['examples']} examples, drawn at random", style="dim")


@approvals_app.command("approve")
def approvals_approve(
    round_id: str,
    directory: DirOption = DEFAULT_DIR,
    config: ConfigOption = None,
    reason: ReasonOption = None,
    by: ByOption = None,
) -> None:
    """Let the round go on. Who decided, and why, is recorded."""
    _decide(round_id, directory, config, True, reason, by)


@approvals_app.command("reject")
def approvals_reject(
    round_id: str,
    directory: DirOption = DEFAULT_DIR,
    config: ConfigOption = None,
    reason: ReasonOption = None,
    by: ByOption = None,
) -> None:
    """End the round as rejected. Who decided, and why, is recorded."""
    _decide(round_id, directory, config, False, reason, by)


def _decide(
    round_id: str, directory: Path, config: Path | None, approved: bool, reason: str | None, by: str | None
) -> None:
    from loop.cli.main import load_config
    from loop.config import ConfigError
    from streams.state.approvals import Decided

    why, who = signed(reason, by)
    approvals, asked = _asked(load_config(config), directory, round_id)
    if not approvals.decide(asked, Decided(approved, who, why)):
        raise ConfigError(
            f"round {round_id!r}: somebody has decided meanwhile, or something else is asked now"
        )
    typer.echo(f"{round_id}: {_what(asked)}: {'approved' if approved else 'rejected'}")


def _what(asked: ApprovalAsked) -> str:
    if asked.subject == "deploy":
        return f"deploy version {asked.shown['version']}"
    return f"train on {asked.shown['examples']} examples"


def _pending(config: Config, directory: Path) -> tuple[ApprovalStore, list[ApprovalAsked]]:
    """What waits, of rounds that are still under way."""
    from loop.backends import find_store
    from loop.workers.approve import waiting
    from loop.workers.record import open_rounds
    from streams.state.approvals import ApprovalStore

    store = find_store(config, directory.resolve())
    return ApprovalStore(store), waiting(store, open_rounds(store), config.student.name)


def _asked(config: Config, directory: Path, round_id: str) -> tuple[ApprovalStore, ApprovalAsked]:
    from loop.config import ConfigError

    approvals, waiting = _pending(config, directory)
    for asked in waiting:
        if asked.round_id == round_id:
            return approvals, asked
    known = ", ".join(asked.round_id for asked in waiting) or "none"
    raise ConfigError(f"round {round_id!r} waits for nobody; waiting: {known}")
