"""The command line. Everything heavy is imported inside the command that needs it: `skillloop --help` loads
no model library."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agent.errors import SkillloopError
from loop.cli.log import dlq_app, ingest, topics_app
from loop.cli.stat import stat

if TYPE_CHECKING:
    from rich.console import Console

    from loop.config import Config

app = typer.Typer(
    name="skillloop",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help=(
        "A deployed student keeps learning: "
        "answers flow in, missing skills are found, taught by a small LoRA round, gated, served."
    ),
)
worker_app = typer.Typer(
    no_args_is_help=True,
    help="Run one worker of the loop in its own process; start as many as you need.",
)
profile_app = typer.Typer(
    no_args_is_help=True, help="The Missing-Skill-Profile: show it, or rebuild it from the log and compare."
)
rounds_app = typer.Typer(no_args_is_help=True, help="The training rounds, and why each of them happened.")
app.add_typer(worker_app, name="worker")
app.add_typer(profile_app, name="profile")
app.add_typer(rounds_app, name="rounds")
app.add_typer(topics_app, name="topics")
app.add_typer(dlq_app, name="dlq")
app.command()(ingest)
app.command()(stat)

DirOption = Annotated[
    Path, typer.Option("--dir", help="The run's directory: state, log, MLflow database, rounds, adapters.")
]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="TOML configuration; SKILLLOOP_<SECTION>__<KEY> overrides a key. Default: the demo's.",
    ),
]
DEFAULT_DIR = Path("runs/demo")
DEFAULT_CONFIG = Path(__file__).parents[2] / "configs" / "demo.toml"


def main() -> None:
    """Entry point: errors that a user can act on are one line, without a traceback."""
    # LangGraph must not import arbitrary types from checkpoints (docs/dependencies.md). Read at its import.
    os.environ.setdefault("LANGGRAPH_STRICT_MSGPACK", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    level = os.environ.get("SKILLLOOP_LOG_LEVEL", "WARNING").upper()
    logging.basicConfig(
        level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    try:
        app()
    except SkillloopError as exc:
        if level == "DEBUG":
            raise
        typer.secho(f"{type(exc).__name__}: {exc}", fg="red", err=True)
        raise SystemExit(1) from exc


def load_config(path: Path | None, **overrides: object) -> Config:
    """The configuration of a command. The environment is read here and nowhere else."""
    from loop.config import load

    return load(path or DEFAULT_CONFIG, os.environ, overrides)


def open_console() -> Console:
    """Where commands print."""
    from rich.console import Console

    return Console()


@app.command()
def demo(
    directory: DirOption = DEFAULT_DIR,
    config: ConfigOption = None,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0, help="Changes the pool, the traffic and the training; the student is the shipped one."
        ),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write the figures to this file.")
    ] = None,
) -> None:
    """Watch the loop close on this machine.

    Needs no account, no server and no GPU. Killed at any point and started again, it resumes.
    """
    from loop.demo.run import run_demo

    loaded = load_config(config, **({} if seed is None else {"seed": seed}))
    run_demo(loaded, directory, json_file, open_console())


@app.command()
def up(
    directory: DirOption = DEFAULT_DIR,
    config: ConfigOption = None,
    once: Annotated[bool, typer.Option("--once", help="Stop when there is nothing left to do.")] = False,
) -> None:
    """Run all workers in one process: consume outputs, keep the profile, teach, gate, promote."""
    from loop.run import run_up

    run_up(load_config(config), directory, once, open_console())


def _worker(kind: str, directory: Path, config: Path | None, once: bool) -> None:
    from loop.run import run_worker

    run_worker(load_config(config), directory, kind, once)


OnceOption = Annotated[bool, typer.Option("--once", help="Stop when there is nothing left to do.")]


@worker_app.command("monitor")
def worker_monitor(
    directory: DirOption = DEFAULT_DIR, config: ConfigOption = None, once: OnceOption = False
) -> None:
    """Turn student outputs into diagnoses and the profile; open rounds when the policy says so."""
    _worker("monitor", directory, config, once)


@worker_app.command("curate")
def worker_curate(
    directory: DirOption = DEFAULT_DIR, config: ConfigOption = None, once: OnceOption = False
) -> None:
    """Make the data sets of planned rounds."""
    _worker("curate", directory, config, once)


@worker_app.command("train")
def worker_train(
    directory: DirOption = DEFAULT_DIR, config: ConfigOption = None, once: OnceOption = False
) -> None:
    """Train curated rounds, evaluate them, judge them, record them in MLflow."""
    _worker("train", directory, config, once)


@worker_app.command("deploy")
def worker_deploy(
    directory: DirOption = DEFAULT_DIR, config: ConfigOption = None, once: OnceOption = False
) -> None:
    """Promote judged rounds after proof that they are what is served, or reject them."""
    _worker("deploy", directory, config, once)


@app.command()
def status(directory: DirOption = DEFAULT_DIR, config: ConfigOption = None) -> None:
    """Show what is served, what is waiting, and what the policy would do now and why."""
    from loop.cli.look import show_status

    show_status(load_config(config), directory, open_console())


@profile_app.command("show")
def profile_show(directory: DirOption = DEFAULT_DIR, config: ConfigOption = None) -> None:
    """Show the served version's profile, with intervals."""
    from loop.cli.look import show_profile

    show_profile(load_config(config), directory, open_console())


@profile_app.command("rebuild")
def profile_rebuild(directory: DirOption = DEFAULT_DIR, config: ConfigOption = None) -> None:
    """Rebuild the profile from the log and compare it with the live one, byte for byte.

    The exit code is 1 when they differ.
    """
    from loop.cli.look import rebuild_profile

    if not rebuild_profile(load_config(config), directory, open_console()):
        raise typer.Exit(1)


@rounds_app.command("list")
def rounds_list(directory: DirOption = DEFAULT_DIR, config: ConfigOption = None) -> None:
    """List all rounds: kind, skills, state, version."""
    from loop.cli.look import list_rounds

    list_rounds(load_config(config), directory, open_console())


@rounds_app.command("show")
def rounds_show(round_id: str, directory: DirOption = DEFAULT_DIR, config: ConfigOption = None) -> None:
    """Show one round: reasons, data, the gate's table, the registered version."""
    from loop.cli.look import show_round

    show_round(load_config(config), directory, round_id, open_console())


@app.command()
def promote(version: int, directory: DirOption = DEFAULT_DIR, config: ConfigOption = None) -> None:
    """Make VERSION the champion by hand, bypassing the gate."""
    from loop.run import promote_version

    promote_version(load_config(config), directory, version, open_console())


@app.command()
def rollback(directory: DirOption = DEFAULT_DIR, config: ConfigOption = None) -> None:
    """Make the previous champion the champion again."""
    from loop.run import roll_back

    roll_back(load_config(config), directory, open_console())


@app.command()
def doctor(directory: DirOption = DEFAULT_DIR, config: ConfigOption = None) -> None:
    """Check libraries, directory, store, log, task, student and champion, and say how to mend them.

    The exit code is 1 when a check fails. It does not call the teacher.
    """
    from loop.cli.doctor import examine

    if not examine(load_config(config), directory, open_console()):
        raise typer.Exit(1)
