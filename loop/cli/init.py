"""`skillloop init`: a configuration of one's own to begin with."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from shlex import quote
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
        "constraints.txt": "constraints.txt",
        ".env": "configs/compose/settings.env",
    },
}
"""The files of each template: name in the new folder -> where the program has it."""

NEXT = {
    Template.DEMO: "skillloop demo --config {0}/skillloop.toml --dir {0}/run",
    Template.ONLINE: "put your questions there, then: skillloop stat --config {0}/stat.toml --run {0}/stat "
    "--until labels (docs/first-loop.md)",
    Template.OFFLINE: "put your questions there, then: skillloop stat --config {0}/stat.toml --run {0}/stat",
    Template.COMPOSE: """
  1. the passwords and the teacher: {0}/.env
  2. the wheel, skillloop-*.whl, into {0}, beside the Dockerfile
  3. your questions and the student into {0}: pool.jsonl, held_out.jsonl, student/ (docs/first-loop.md)
  4. the catalog: skillloop stat --config {0}/stat.toml --run {0}/stat --until labels
  5. chmod -R a+rX {0}/stat {0}/student: the containers run as another user (1000)
  6. docker compose --project-directory {0} build
  7. docker compose --project-directory {0} up --detach --wait""",
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
    typer.echo(f"next: {NEXT[template].format(quote(str(directory)))}")


def write_template(directory: Path, template: Template) -> list[Path]:
    """Write a template's files, for everybody to read (containers run as another user) but `.env`, which has
    passwords. Raises `FilesInTheWay`, before anything is written, and `UnusableDirectory`."""
    targets = {directory / name: ROOT / source for name, source in FILES[template].items()}
    umask = os.umask(0o022)
    try:
        there = [str(path) for path in targets if path.exists()]
        if there:
            raise FilesInTheWay(f"{', '.join(there)} exists already; choose another folder or remove it")
        directory.mkdir(parents=True, exist_ok=True)
        for path, source in targets.items():
            path.touch(0o600 if path.name == ".env" else 0o644)
            path.write_bytes(source.read_bytes())
    except OSError as exc:
        from loop.backends import UnusableDirectory

        raise UnusableDirectory(f"cannot write to {directory}: {exc}; choose another folder") from exc
    finally:
        os.umask(umask)
    return list(targets)
