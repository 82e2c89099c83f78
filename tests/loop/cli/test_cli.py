from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.table import Table

from loop.cli.main import open_console
from loop.offline.records import ProfileRow
from loop.offline.show import profile_table
from loop.shipped import CONFIGS
from streams.local_log import LocalLog
from streams.state.store import StateStore
from tests.warm import run_warm

SKILLLOOP = Path(sys.executable).parent / "skillloop"


def test_help_loads_no_model_library() -> None:
    code = (
        "import sys, loop.cli.main; sys.exit(any(m in sys.modules "
        "for m in ('torch', 'transformers', 'mlflow', 'langgraph', 'sqlalchemy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    done = subprocess.run([SKILLLOOP, "--help"], capture_output=True, text=True, check=True)
    assert "demo" in done.stdout and "rollback" in done.stdout


def test_a_worker_loads_no_model_library_before_its_student_needs_one() -> None:
    code = (
        "import sys, loop.run, training.registry; "
        "sys.exit(any(m in sys.modules for m in ('torch', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "command",
    [
        "demo",
        "up",
        "worker",
        "status",
        "profile",
        "rounds",
        "approvals",
        "promote",
        "rollback",
        "doctor",
        "dlq",
        "topics",
        "ingest",
        "gateway",
    ],
)
def test_every_command_has_help(command: str) -> None:
    done = subprocess.run([SKILLLOOP, command, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


@pytest.mark.parametrize(("command", "section"), [("gateway", "gateway"), ("ingest", "ingest.models")])
def test_help_names_the_section_that_it_means(command: str, section: str) -> None:
    """Rich takes what stands in brackets for markup and shows nothing."""
    done = subprocess.run([SKILLLOOP, command, "--help"], capture_output=True, text=True, check=True)
    assert f"section `{section}`" in " ".join(done.stdout.split())


def test_brackets_and_colons_in_names_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    name = "interval [a,b] [/c] :100:"
    row = ProfileRow(skill=name, missing=1, needed=2, miss_rate=0.5, share=1.0, pool=3)
    console = open_console()
    console.print(profile_table([row]))
    console.print(name)
    assert capsys.readouterr().out.count(name) == 2


def test_lines_are_not_wrapped_where_nobody_reads_them(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 80 columns `grep` found half a sentence, and a table's names without their ends."""
    monkeypatch.delenv("COLUMNS", raising=False)
    console, line = open_console(), "word " * 100 + "end"
    table = Table("one", "two")
    table.add_row(line, line)
    console.print(line)
    console.print(table)
    said = capsys.readouterr().out
    assert said.count(line) == 3 and max(map(len, said.splitlines())) < 3 * len(line)
    monkeypatch.setenv("COLUMNS", "40")
    open_console().print(line)
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 40


LOOKING = (
    ["status"],
    ["profile", "show"],
    ["profile", "rebuild"],
    ["rounds", "list"],
    ["rounds", "show", "r1"],
    ["rounds", "discard", "r1"],
    ["topics", "list"],
    ["topics", "adopt", "student-outputs"],
    ["dlq", "list"],
    ["dlq", "show", "student-outputs/0/0"],
    ["dlq", "redrive"],
    ["store", "compact"],
)
CHANGING = (
    ["promote", "1", "--reason", "r"],
    ["rollback", "--reason", "r"],
    ["approvals", "list"],
    ["approvals", "show", "r1"],
    ["approvals", "approve", "r1", "--reason", "r"],
)


@pytest.mark.parametrize("command", LOOKING + CHANGING, ids=" ".join)
def test_looking_where_nothing_is_makes_nothing_and_says_so(command: list[str], tmp_path: Path) -> None:
    for folder in (tmp_path / "mistyped", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        done = run_warm(SKILLLOOP, *command, "--dir", folder)
        assert done.returncode == 1, (done.stdout, done.stderr)
        assert "NothingThere: there is no" in done.stderr and folder.name in done.stderr
        assert "--dir" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "mistyped").exists() and not list((tmp_path / "empty").iterdir())


@pytest.mark.parametrize(
    ("command", "folder"),
    [
        (["ingest", "nothing.jsonl"], "--dir"),
        (["stat", "--config", CONFIGS / "stat/own.toml", "--from", "x"], "--run"),
    ],
    ids=["ingest", "stat"],
)
def test_a_command_that_refuses_its_arguments_makes_nothing(
    command: list[str | Path], folder: str, tmp_path: Path
) -> None:
    done = run_warm(SKILLLOOP, *command, folder, tmp_path / "new")
    assert done.returncode == 1 and "Error" in done.stderr, (done.stdout, done.stderr)
    assert not (tmp_path / "new").exists()


HEAVY = ("numpy", "torch", "transformers", "mlflow", "langgraph", "langchain_core", "peft", "trl")
QUICK = (["status"], ["profile", "show"], ["rounds", "list"], ["rounds", "show", "demo-r001"])


def look(*words: object) -> list[str]:
    """The heavy libraries that a command has loaded, run as the installed script runs."""
    argv = ["skillloop", *map(str, words)]
    code = (
        f"import sys; from loop.cli.main import main\nsys.argv = {argv}\n"
        "try:\n    main()\nexcept SystemExit as exc:\n    assert not exc.code, exc.code\n"
        f"print(*(m for m in {HEAVY} if m in sys.modules), sep=',', file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [name for name in done.stderr.splitlines()[-1].split(",") if name]


@pytest.mark.slow
@pytest.mark.parametrize("command", QUICK, ids=" ".join)
def test_looking_loads_no_model_library(command: list[str], reference: Any) -> None:
    assert look(*command, "--config", reference.config, "--dir", reference.root) == []


def test_looking_at_a_task_of_files_opens_no_teacher(tmp_path: Path) -> None:
    row = {"id": "q", "question": "1+1?", "solution": "s", "answer": "2", "skills": ["add"]}
    files = {"catalog": {"skill": "add", "description": "adds"}, "pool": row}
    for name, line in (files | {"gate": row | {"id": "g", "question": "2+2?"}}).items():
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(line))
    config, run = tmp_path / "own.toml", tmp_path / "run"
    config.write_text(
        '[task]\nkind = "files"\ncatalog = "catalog.jsonl"\npool = "pool.jsonl"\nheld_out = ["gate.jsonl"]\n'
        '[teacher]\nkind = "chat"\n[teacher.chat]\nbase_url = "http://127.0.0.1:9/v1"\nmodel = "m"\n'
    )
    StateStore(f"sqlite:///{run / 'state.db'}").close()
    LocalLog(run / "log.db").close()
    before = sorted(run.iterdir())
    assert look("status", "--config", config, "--dir", run) == []
    assert sorted(run.iterdir()) == before


def test_an_error_is_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    done = run_warm(SKILLLOOP, "status", "--config", tmp_path / "none.toml", "--dir", tmp_path)
    assert done.returncode == 1
    assert "no configuration file" in done.stderr and "Traceback" not in done.stderr
