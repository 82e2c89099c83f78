"""`skillloop init`: a configuration of one's own to begin with."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from loop.errors import LoopError
from loop.shipped import ROOT

LOOP_FILE = "skillloop.toml"
STAT_FILE = "stat.toml"


class Template(StrEnum):
    """What a person wants to run."""

    DEMO = "demo"
    ONLINE = "online"
    OFFLINE = "offline"
    COMPOSE = "compose"


FILES: dict[Template, dict[str, str]] = {
    Template.DEMO: {LOOP_FILE: "configs/demo.toml"},
    Template.ONLINE: {LOOP_FILE: "configs/online.toml", STAT_FILE: "configs/stat/own.toml"},
    Template.OFFLINE: {STAT_FILE: "configs/stat/own.toml"},
    Template.COMPOSE: {
        LOOP_FILE: "configs/online.toml",
        STAT_FILE: "configs/stat/own.toml",
        "compose.yaml": "compose.yaml",
        "Dockerfile": "configs/compose/Dockerfile",
        ".env": "configs/compose/settings.env",
    },
}
"""The files of each template: name in the new folder -> where the program has it."""

NEXT = {
    Template.DEMO: "skillloop demo --config {0}/skillloop.toml --dir {0}/run",
    Template.ONLINE: "put your questions there, then: skillloop stat --config {0}/stat.toml --run {0}/stat "
    "--until labels (docs/first-loop.md)",
    Template.OFFLINE: "put your questions there, then: skillloop stat --config {0}/stat.toml --run {0}/stat",
    Template.COMPOSE: "set the passwords in {0}/.env, then: docker compose --project-directory {0} up --wait",
}


class FilesInTheWay(LoopError):
    """The folder has files of these names already; nothing was written."""


def init(
    directory: Annotated[Path, typer.Argument(help="The folder to write to; it is made if it is not there.")],
    template: Annotated[
        Template,
        typer.Option(help="What to run: the demo, the loop, `skillloop stat`, or all in containers."),
    ] = Template.DEMO,
) -> None:
    """Write a commented configuration of your own. Files that are there are never overwritten."""
    for path in write_template(directory, template):
        typer.echo(f"wrote {path}")
    typer.echo(f"next: {NEXT[template].format(directory)}")


def write_template(directory: Path, template: Template) -> list[Path]:
    """Write a template's files. Raises `FilesInTheWay`, before anything is written."""
    targets = {directory / name: ROOT / source for name, source in FILES[template].items()}
    there = [str(path) for path in targets if path.exists()]
    if there:
        raise FilesInTheWay(f"{', '.join(there)} exists already; choose another folder or remove it")
    directory.mkdir(parents=True, exist_ok=True)
    for path, source in targets.items():
        path.write_bytes(source.read_bytes())
        if path.name == ".env":
            path.chmod(0o600)
    return list(targets)
