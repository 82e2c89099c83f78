"""The whole command against a real OpenAI-compatible HTTP server: `skillloop stat` with the chat teacher, its
faults, its costs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from agent.budget import BudgetExceeded
from graphs.testing.faults import Order
from graphs.testing.server import TeacherServer
from loop.cli.stat import NotConfirmed, stat
from loop.config import ConfigError
from loop.offline.bench import STUDENT
from streams.files import read_objects
from streams.state.ledger import paid
from streams.state.store import StateStore

Files = Callable[..., Path]
PRICED = "{ prompt_usd_per_mtok = 1.0, completion_usd_per_mtok = 2.0 }"


@pytest.fixture
def command() -> typer.Typer:
    app = typer.Typer()
    app.callback()(lambda: None)
    app.command()(stat)
    return app


def chat(config: Path, server: TeacherServer, price: str = "{ free = true }", more: str = "") -> None:
    settings = (
        f'[teacher.chat]\nbase_url = "{server.base_url}"\nmodel = "scripted"\nbackoff_s = 0.01\n'
        f"max_tokens = 64\nprice = {price}\n"
    )
    text = config.read_text().replace('scripted = { script = "script.json" }', 'kind = "chat"\n' + settings)
    config.write_text(text.replace("pairs = 60", "pairs = 20\nk_sel = 1") + more)


def run(command: typer.Typer, config: Path, *options: str) -> str:
    done = CliRunner().invoke(
        command, ["stat", "--config", str(config), "--run", str(config.parent / "run"), *options]
    )
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
    assert rows and {row["origin"]["teacher"] for row in rows if row["origin"]["kind"] == "rewritten"} <= {
        "scripted"
    }
    assert all(
        row["missing"]
        for row in read_objects(config.parent / "run" / "diagnoses.jsonl")
        if row["verdict"] == "incorrect"
    )


def dataset_over_http(config: Path, command: typer.Typer, *faults: str) -> tuple[bytes, int]:
    """The data set that the command makes with a server that goes wrong in these ways, and how many requests
    that took."""
    with TeacherServer(faults=[Order.parse(text) for text in faults]) as server:
        chat(config, server)
        config.write_text(config.read_text().replace("max_tokens = 64", "max_tokens = 64\ntimeout_s = 2"))
        run(command, config)
        return (config.parent / "run" / "dataset.jsonl").read_bytes(), server.calls.total()


def test_a_server_that_fails_for_a_while_changes_nothing(
    make_files: Files, command: typer.Typer, tmp_path: Path
) -> None:
    undisturbed, asked = dataset_over_http(make_files(), command)
    shutil.rmtree(tmp_path / "run")
    passing = ("429:2@label", "500:2@diagnose", "timeout:1@diagnose", "drop:1@rewrite", "garbage:2@rewrite")
    assert dataset_over_http(make_files(), command, *passing) == (undisturbed, asked + 8)


def test_replies_that_cannot_be_used_are_repaired_or_abstained_from(
    make_files: Files, command: typer.Typer
) -> None:
    """Truncated JSON, a refusal, skills off the list, invented evidence: nothing of it reaches the profile or
    the data set."""
    config = make_files()
    lasting = (
        "truncated:1@label",
        "off_list:1@label",
        "refusal:1@diagnose",
        "off_list:2@diagnose",
        "fake_evidence:1@diagnose",
    )
    dataset, _ = dataset_over_http(config, command, *lasting)
    folder = config.parent / "run"
    catalog = {row["skill"] for row in read_objects(folder / "catalog.jsonl")}
    found = list(read_objects(folder / "diagnoses.jsonl"))
    assert dataset and {skill for row in found for skill in row["missing"]} <= catalog
    assert any(row["verdict"] == "abstained" for row in found)
    said = {row["question_id"]: row["response"] for row in read_objects(folder / "answers.jsonl")}
    assert all(row["evidence"] in said[row["question_id"]] for row in found)


def test_money_is_agreed_to_and_capped_before_the_call_that_would_pass_the_cap(
    make_files: Files, command: typer.Typer
) -> None:
    config = make_files()
    with TeacherServer() as server:
        chat(config, server, PRICED, "[budget]\nusd_per_round = 0.002\n")
        with pytest.raises(NotConfirmed, match="--yes"):
            run(command, config)
        assert not server.calls
        with pytest.raises(BudgetExceeded, match="usd_per_round"):
            run(command, config, "--yes")
        ledger = StateStore(f"sqlite:///{config.parent / 'run' / 'ledger.db'}")
        spent, asked = paid(ledger, STUDENT), sum(server.calls.values())
        assert 0 < spent.usd <= 0.002 and spent.calls == asked
        with pytest.raises(BudgetExceeded):
            run(command, config, "--yes")
        assert paid(ledger, STUDENT).usd <= 0.002


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [("--until", "datset", "unknown stage"), ("--strategy", "stat", "unknown strategy")],
)
def test_a_wrong_name_is_an_error_that_lists_the_right_ones(
    make_files: Files, command: typer.Typer, option: str, value: str, told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        run(command, make_files(), option, value)
