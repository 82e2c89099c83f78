"""The whole command against a real OpenAI-compatible HTTP server: `skillloop stat` with the chat teacher, its faults, its costs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from agent.budget import BudgetExceeded
from graphs.teacher_server import TeacherServer
from loop.cli_stat import NotConfirmed, mount
from loop.config import ConfigError
from loop.offline.jsonl import read_objects
from loop.offline.ledger import paid

Files = Callable[..., Path]
PRICED = "{ prompt_usd_per_mtok = 1.0, completion_usd_per_mtok = 2.0 }"


@pytest.fixture
def command() -> typer.Typer:
    app = typer.Typer()
    app.callback()(lambda: None)
    mount(app)
    return app


def chat(config: Path, server: TeacherServer, price: str = "{ free = true }", more: str = "") -> None:
    settings = f'[teacher.chat]\nbase_url = "{server.base_url}"\nmodel = "scripted"\nbackoff_s = 0.01\nmax_tokens = 64\nprice = {price}\n'
    text = config.read_text().replace('script = "script.json"', 'kind = "chat"\n' + settings)
    config.write_text(text.replace("pairs = 60", "pairs = 20\nk_sel = 1") + more)


def run(command: typer.Typer, config: Path, *options: str) -> str:
    done = CliRunner().invoke(command, ["stat", "--config", str(config), "--run", str(config.parent / "run"), *options])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def test_the_whole_command_over_http(make_files: Files, command: typer.Typer) -> None:
    config = make_files()
    with TeacherServer() as server:
        chat(config, server)
        output = run(command, config)
        asked = sum(server.calls.values())
        assert "Estimate" in output and "done  dataset" in output and "Missing-Skill-Profile" in output
        assert {"label", "diagnose", "rewrite"} <= set(server.calls)
        output = run(command, config, "--strategy", "stat-syn")
        assert {"write", "solve"} <= set(server.calls) and "kept  profile" in output
        now = sum(server.calls.values())
        assert now > asked
        run(command, config, "--from", "catalog")
        assert sum(server.calls.values()) == now
    rows = list(read_objects(config.parent / "run" / "dataset.jsonl"))
    assert rows and {row["origin"]["teacher"] for row in rows if row["origin"]["kind"] == "rewritten"} <= {"scripted"}
    assert all(row["missing"] for row in read_objects(config.parent / "run" / "diagnoses.jsonl") if row["verdict"] == "incorrect")


def test_money_is_agreed_to_and_capped_before_the_call_that_would_pass_the_cap(make_files: Files, command: typer.Typer) -> None:
    config = make_files()
    with TeacherServer() as server:
        chat(config, server, PRICED, "[budget]\ncap_usd = 0.002\n")
        with pytest.raises(NotConfirmed, match="--yes"):
            run(command, config)
        assert not server.calls
        with pytest.raises(BudgetExceeded, match="usd_per_round"):
            run(command, config, "--yes")
        ledger = config.parent / "run" / "ledger.jsonl"
        spent, asked = paid(ledger), sum(server.calls.values())
        assert 0 < spent.usd <= 0.002 and spent.calls == asked
        with pytest.raises(BudgetExceeded):
            run(command, config, "--yes")
        assert paid(ledger).usd <= 0.002


@pytest.mark.parametrize(("option", "value", "told"), [("--until", "datset", "unknown stage"), ("--strategy", "stat", "unknown strategy")])
def test_a_wrong_name_is_an_error_that_lists_the_right_ones(
    make_files: Files, command: typer.Typer, option: str, value: str, told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        run(command, make_files(), option, value)
