"""What a long-running command says, and how."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from loop.cli.logs import OURS, FloodGate, JsonLines, LogFormat, set_up_logging
from loop.cli.told import Told
from loop.workers.messages import Evaluating, Postponed, Training
from tests.warm import run_warm

SKILLLOOP = Path(sys.executable).parent / "skillloop"


@pytest.fixture
def _levels() -> Iterator[None]:
    """The loggers as they were."""
    loggers = [logging.getLogger(name) for name in ("", *OURS)]
    before = [(logger, logger.level, logger.handlers[:]) for logger in loggers]
    yield
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers


def record(name: str, text: str, level: int = logging.WARNING) -> logging.LogRecord:
    return logging.LogRecord(name, level, __file__, 1, text, (), None)


def test_a_json_line_has_the_message_its_fields_and_the_exception() -> None:
    made = record("loop.run", "round r1 waits")
    made.fields = {"event": "wait", "round": "r1"}
    try:
        raise OSError("gone")
    except OSError:
        made.exc_info = sys.exc_info()
    line = json.loads(JsonLines().format(made))
    assert (line["level"], line["message"], line["event"], line["round"]) == (
        "WARNING",
        "round r1 waits",
        "wait",
        "r1",
    )
    assert line["time"].endswith("+00:00") and "OSError: gone" in line["exception"]


def test_a_flood_of_a_library_becomes_one_line() -> None:
    gate = FloodGate("kafka")
    passed = [gate.filter(record("kafka.net.connection", f"refused {n}")) for n in range(75)]
    assert passed == [True] + 74 * [False]
    assert gate.filter(record("streams.consume", "retry")), "our own lines pass"
    assert gate.filter(record("kafkaesque", "other"))


@pytest.mark.usefixtures("_levels")
def test_requests_that_are_not_http_do_not_fill_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    """Each was a line."""
    set_up_logging("WARNING")
    for _ in range(50):
        logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
    logging.getLogger("uvicorn.error").error("Exception in ASGI application")
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and "Invalid HTTP" in said[0] and "Exception in ASGI" in said[1]


def test_without_a_terminal_messages_are_json_lines(
    _levels: None, capsys: pytest.CaptureFixture[str]
) -> None:
    console = Console(file=io.StringIO())
    set_up_logging("INFO", LogFormat.AUTO, console)
    with Told(console) as told:
        told(Evaluating("version 1", 60))
        for step in range(1, 101):
            told(Training("r1", step, 100, 0.5))
        told(Postponed("r1", 2, "OSError: gone", 30.0))
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert lines[0]["message"] == "version 1 answers 60 held-out items"
    progress = [line["done"] for line in lines if line.get("event") == "progress"]
    assert progress == [1, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100]
    assert (lines[-1]["level"], lines[-1]["event"], lines[-1]["failures"]) == ("WARNING", "wait", 2)


def test_on_a_terminal_lines_are_text_over_a_bar(_levels: None) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    set_up_logging("INFO", LogFormat.AUTO, console)
    with Told(console) as told:
        told(Training("r1", 5, 10, 0.25))
        told(Evaluating("version 1", 60))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "round r1: training, loss 0.250" in shown and "5/10" in shown
    assert "version 1 answers 60 held-out items" in shown


@pytest.mark.slow
def test_a_command_is_told_how_to_speak(tmp_path: Path) -> None:
    config = tmp_path / "own.toml"
    config.write_text('[engine]\nkind = "scripted"\n')
    words = ("up", "--once", "--config", config, "--dir", tmp_path / "run")
    text = run_warm(SKILLLOOP, *words, "--log-format", "text")
    assert text.returncode == 0, text.stderr
    assert "INFO loop.run: starting the loop of student 'demo'" in text.stderr
    assert "INFO loop.workers.live: version 1 of 'demo' is served" in text.stderr
    quiet = run_warm(SKILLLOOP, *words, "-q")
    assert (quiet.returncode, quiet.stderr) == (0, "")
    assert quiet.stdout.startswith("0 records waited in student-outputs")
    verbose = run_warm(SKILLLOOP, *words, "-v")
    assert {json.loads(line)["level"] for line in verbose.stderr.splitlines()} >= {"INFO"}
