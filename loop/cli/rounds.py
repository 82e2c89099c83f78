"""Commands about training rounds. Everything heavy is imported inside."""

from __future__ import annotations

from typing import Annotated

import typer

from loop.cli.log import DEFAULT_DIR, ConfigOption, DirOption

rounds_app = typer.Typer(no_args_is_help=True, help="The training rounds, and why each of them happened.")
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")]


@rounds_app.command("list")
def rounds_list(
    directory: DirOption = DEFAULT_DIR, config: ConfigOption = None, as_json: JsonOption = False
) -> None:
    """List all rounds: kind, skills, state, version."""
    from loop.cli.main import load_config, open_console
    from loop.cli.show_rounds import list_rounds

    list_rounds(load_config(config), directory, open_console(), as_json)


@rounds_app.command("show")
def rounds_show(
    round_id: str,
    directory: DirOption = DEFAULT_DIR,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one round: reasons, data, the gate's table, the registered version."""
    from loop.cli.main import load_config, open_console
    from loop.cli.show_rounds import show_round

    show_round(load_config(config), directory, round_id, open_console(), as_json)


@rounds_app.command("discard")
def rounds_discard(round_id: str, directory: DirOption = DEFAULT_DIR, config: ConfigOption = None) -> None:
    """End a round whose record cannot be read, so that the next one can be opened."""
    from loop.cli.main import load_config, open_console
    from loop.cli.show_rounds import discard_round

    discard_round(load_config(config), directory, round_id, open_console())
