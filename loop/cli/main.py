"""The command line. Everything heavy is imported inside the command that needs it: `skillloop --help` loads
no model library."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agent.errors import SkillloopError
from loop.cli.approvals import ByOption, ReasonOption, approvals_app, signed
from loop.cli.init import init
from loop.cli.log import dlq_app, ingest, topics_app
from loop.cli.logs import LogFormat, set_up_logging
from loop.cli.rounds import JsonOption, rounds_app
from loop.cli.stat import stat
from loop.cli.store import store_app
from loop.shipped import CONFIGS, program_version

if TYPE_CHECKING:
    from rich.console import Console

    from loop.cli.told import Told
    from loop.config import Config

LOG_LEVEL = "SKILLLOOP_LOG_LEVEL"
UNWRAPPED = 100_000
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
app.add_typer(worker_app, name="worker")
app.add_typer(profile_app, name="profile")
app.add_typer(rounds_app, name="rounds")
app.add_typer(approvals_app, name="approvals")
app.add_typer(topics_app, name="topics")
app.add_typer(dlq_app, name="dlq")
app.add_typer(store_app, name="store")
app.command()(ingest)
app.command()(stat)
app.command()(init)

DirOption = Annotated[
    Path,
    typer.Option(
        "--dir",
        envvar="SKILLLOOP_DIR",
        help="The run's directory: state, log, MLflow database, rounds, adapters.",
    ),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        envvar="SKILLLOOP_CONFIG",
        help="TOML configuration; SKILLLOOP_<SECTION>__<KEY> overrides a key. Default: the demo's.",
    ),
]
DEFAULT_DIR = Path("runs/demo")
DEFAULT_CONFIG = CONFIGS / "demo.toml"


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"skillloop {program_version()}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Options of the command itself."""


def main() -> None:
    """Entry point: errors that a user can act on are one line, without a traceback."""
    os.umask(0o077)  # answers, replies and models are their owner's alone
    # LangGraph must not import arbitrary types from checkpoints (docs/dependencies.md). Read at its import.
    os.environ.setdefault("LANGGRAPH_STRICT_MSGPACK", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # Its default is to retry for minutes without a word; workers retry by themselves and say so.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    level = os.environ.get(LOG_LEVEL, "WARNING").upper()
    try:
        set_up_logging(level)
    except ValueError as exc:
        raise SystemExit(f"variable {LOG_LEVEL}: {exc}; use DEBUG, INFO, WARNING or ERROR") from exc
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
    """Where commands print. Names and messages come from outside: `[a,b]` in them is no markup. Lines are
    wrapped for people only, at the width of their terminal or at COLUMNS."""
    from rich.console import Console

    console = Console(markup=False, emoji=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = UNWRAPPED
    return console


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


OnceOption = Annotated[
    bool,
    typer.Option("--once", help="Stop when what waits now is read and done, and say how much it was."),
]
Says = tuple[bool, bool, LogFormat]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Log everything, for debugging.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Log warnings and errors only.")]
FormatOption = Annotated[
    LogFormat,
    typer.Option("--log-format", help="auto: text and a bar on a terminal, else one JSON object a line."),
]


@contextmanager
def _telling(verbose: bool, quiet: bool, log_format: LogFormat) -> Iterator[Told]:
    """A listener that logs what a long-running command does, on standard error."""
    from rich.console import Console

    from loop.cli.told import Told

    console = Console(stderr=True)
    chosen = "DEBUG" if verbose else "WARNING" if quiet else os.environ.get(LOG_LEVEL, "INFO").upper()
    set_up_logging(chosen, log_format, console)
    with Told(console, bars=not quiet and log_format is not LogFormat.JSON) as told:
        yield told


@app.command()
def up(
    directory: DirOption = DEFAULT_DIR,
    config: ConfigOption = None,
    once: OnceOption = False,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
    log_format: FormatOption = LogFormat.AUTO,
) -> None:
    """Run all workers in one process: consume outputs, keep the profile, teach, gate, promote."""
    with _telling(verbose, quiet, log_format) as told:
        from loop.run import run_up

        run_up(load_config(config), directory, once, told, open_console())


@app.command()
def gateway(directory: DirOption = DEFAULT_DIR, config: ConfigOption = None) -> None:
    """Serve users: an OpenAI-compatible API before the student's replicas, capturing its answers.

    Settings are in the section `gateway`; the deploy worker writes which version is served.
    """
    from loop.gateway import run_gateway

    run_gateway(load_config(config), directory, open_console())


@app.command()
def metrics(
    directory: DirOption = DEFAULT_DIR,
    config: ConfigOption = None,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 9464,
) -> None:
    """Serve what `status` knows to Prometheus, at /metrics. Reads only; one process is enough for a run."""
    from loop.cli.metrics import serve_metrics

    serve_metrics(load_config(config), directory, host, port, open_console())


def _worker(kind: str, directory: Path, config: Path | None, once: bool, says: Says) -> None:
    with _telling(*says) as told:
        from loop.run import run_worker

        run_worker(load_config(config), directory, kind, once, told, open_console())


@worker_app.command("monitor")
def worker_monitor(
    directory: DirOption = DEFAULT_DIR,
    config: ConfigOption = None,
    once: OnceOption = False,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
    log_format: FormatOption = LogFormat.AUTO,
) -> None:
    """Turn student outputs into diagnoses and the profile; open rounds when the policy says so."""
    _worker("monitor", directory, config, once, (verbose, quiet, log_format))


@worker_app.command("curate")
def worker_curate(
    directory: DirOption = DEFAULT_DIR,
    config: ConfigOption = None,
    once: OnceOption = False,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
    log_format: FormatOption = LogFormat.AUTO,
) -> None:
    """Make the data sets of planned rounds."""
    _worker("curate", directory, config, once, (verbose, quiet, log_format))


@worker_app.command("train")
def worker_train(
    directory: DirOption = DEFAULT_DIR,
    config: ConfigOption = None,
    once: OnceOption = False,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
    log_format: FormatOption = LogFormat.AUTO,
) -> None:
    """Train curated rounds, evaluate them, judge them, record them in MLflow."""
    _worker("train", directory, config, once, (verbose, quiet, log_format))


@worker_app.command("deploy")
def worker_deploy(
    directory: DirOption = DEFAULT_DIR,
    config: ConfigOption = None,
    once: OnceOption = False,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
    log_format: FormatOption = LogFormat.AUTO,
) -> None:
    """Promote judged rounds after proof that they are what is served, or reject them."""
    _worker("deploy", directory, config, once, (verbose, quiet, log_format))


@app.command()
def status(
    directory: DirOption = DEFAULT_DIR, config: ConfigOption = None, as_json: JsonOption = False
) -> None:
    """Show what is served, what is waiting, what the policy would do now and why, what was deployed last."""
    from loop.cli.status import show_status

    show_status(load_config(config), directory, open_console(), as_json)


@profile_app.command("show")
def profile_show(directory: DirOption = DEFAULT_DIR, config: ConfigOption = None) -> None:
    """Show the served version's profile, with intervals."""
    from loop.cli.look import show_profile

    show_profile(load_config(config), directory, open_console())


@profile_app.command("pairs")
def profile_pairs(
    directory: DirOption = DEFAULT_DIR,
    config: ConfigOption = None,
    least: Annotated[int, typer.Option(min=1, help="Answers that a pair needs to be shown.")] = 20,
) -> None:
    """Show which two skills fail together more often than each alone lets one expect.

    Read from the diagnoses in the event log, of the served version.
    """
    from loop.cli.look import show_pairs

    show_pairs(load_config(config), directory, open_console(), least)


@profile_app.command("rebuild")
def profile_rebuild(directory: DirOption = DEFAULT_DIR, config: ConfigOption = None) -> None:
    """Rebuild the profile from the log and compare it with the live one, byte for byte.

    The exit code is 1 when they differ.
    """
    from loop.cli.look import rebuild_profile

    if not rebuild_profile(load_config(config), directory, open_console()):
        raise typer.Exit(1)


@app.command()
def promote(
    version: int,
    directory: DirOption = DEFAULT_DIR,
    config: ConfigOption = None,
    reason: ReasonOption = None,
    by: ByOption = None,
) -> None:
    """Make VERSION the champion by hand, bypassing the gate. Who did it, and why, is recorded."""
    reason, by = signed(reason, by)
    from loop.run import promote_version
    from loop.workers.live import Switch

    switch = Switch(action="promote", by=by, reason=reason)
    promote_version(load_config(config), directory, version, switch, open_console())


@app.command()
def rollback(
    directory: DirOption = DEFAULT_DIR,
    config: ConfigOption = None,
    to: Annotated[int | None, typer.Option("--to", min=1, help="Default: the champion before.")] = None,
    reason: ReasonOption = None,
    by: ByOption = None,
) -> None:
    """Make the previous champion, or the version given with --to, the champion again. Who did it, and why, is
    recorded."""
    reason, by = signed(reason, by)
    from loop.run import roll_back
    from loop.workers.live import Switch

    switch = Switch(action="rollback", by=by, reason=reason)
    roll_back(load_config(config), directory, switch, open_console(), to)


@app.command()
def doctor(directory: DirOption = DEFAULT_DIR, config: ConfigOption = None) -> None:
    """Check everything that is configured, each within a deadline, and say how to mend it.

    Libraries, directory and disk, store, log with topics and codecs, task, gate, filters, teacher and prices,
    registry, the student's answer, the trainer's settings, the champion. The exit code is 1 when a check
    fails. The teacher's server is only asked which models it has, which costs nothing.
    """
    from loop.cli.doctor import examine

    if not examine(load_config(config), directory, open_console()):
        raise typer.Exit(1)


if __name__ == "__main__":
    main()
