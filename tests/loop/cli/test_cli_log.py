"""`skillloop topics`, `ingest` and `dlq` on the local log."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from loop.cli.log import dlq_app, ingest, topics_app
from streams.codec import encode
from streams.consume import ConsumeLoop, ConsumeSettings, Effects
from streams.local_log import LocalLog
from streams.state.outbox import OutboxRelay
from streams.state.store import StateStore
from streams.testing.synthetic import output, poison

ingest_app = typer.Typer()
ingest_app.command()(ingest)


def run(app: typer.Typer, *arguments: object, expect: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == expect, result.output
    return result


@pytest.fixture
def with_letters(tmp_path: Path) -> Path:
    """A run whose handler refused two events; a third record is not JSON."""
    store = StateStore(f"sqlite:///{tmp_path}/state.db")
    with LocalLog(tmp_path / "log.db") as log:
        log.append([encode(output(1)), encode(output(2)), poison("not-json", 3)])
        settings = ConsumeSettings("monitor", ("student-outputs",))
        loop = ConsumeLoop(
            log,
            store,
            lambda events: Effects(failed={e.identity: "no\x1b[31m way" for e in events}),
            settings,
        )
        while loop.step():
            pass
        OutboxRelay(store, log).step()
        loop.close()
    store.close()
    return tmp_path


def test_topics_are_listed_with_their_ends(tmp_path: Path) -> None:
    assert "8 topics" in run(topics_app, "create", "--dir", tmp_path).output
    with LocalLog(tmp_path / "log.db") as log:
        log.append([encode(output(1))])
    listed = run(topics_app, "list", "--dir", tmp_path).output
    assert "student-outputs          8 partitions, 1 records so far, kept 30 days" in listed
    assert "student-outputs.dlq" in listed


def test_a_file_may_be_called_anything_and_bad_lines_give_a_terminal_no_orders(
    tmp_path: Path,
) -> None:
    file = tmp_path / "answers[b]{x}.jsonl"
    file.write_text(json.dumps({"\x9b2J": 1, "occurred_at": "2026-01-01T00:00:00Z"}))
    result = run(ingest_app, file, "--dir", tmp_path, expect=2)
    assert "1 bad lines" in result.output and "\x9b" not in result.output


def test_a_file_is_ingested_and_bad_lines_set_the_exit_status(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(output(1).model_dump_json() + "\n" + output(2).model_dump_json() + "\noops\n")
    result = run(ingest_app, file, "--dir", tmp_path, expect=2)
    assert "3 lines: 2 answers written to the log, 1 bad lines, 0 left out" in result.output
    assert "line 3: not JSON" in result.output
    assert "0 lines after line 3" in run(ingest_app, file, "--dir", tmp_path).output


def test_a_dry_run_shows_whose_answers_lines_would_be(tmp_path: Path) -> None:
    def line(model: str) -> str:
        request = {"model": model, "messages": [{"role": "user", "content": "2+2?"}]}
        choices = [{"message": {"content": "4"}}]
        return json.dumps(
            {"request": request, "response": {"created": 1, "model": model, "choices": choices}}
        )

    file, config, root = tmp_path / "a.jsonl", tmp_path / "a.toml", tmp_path / "run"
    config.write_text('[ingest.models]\n"tutor-v*" = "*"\n')
    file.write_text("\n".join(map(line, ("tutor-v2", "gpt-4o", "gpt-4o"))))
    words = (file, "--dir", root, "--config", config)
    shown = run(ingest_app, *words, "--dry-run").output.splitlines()
    assert [" ".join(row.split()) for row in shown] == [
        "tutor-v2 'demo' version 2 1 answers",
        "gpt-4o left out 2 lines",
        "3 lines: 1 answers would be written to the log, 0 bad lines, 2 left out",
    ]
    assert not root.exists()
    assert "1 answers written to the log, 0 bad lines, 2 left out" in run(ingest_app, *words).output
    file.write_text(line("gpt-4o"))
    assert "[ingest.models] says which" in run(ingest_app, *words, expect=2).output
    config.write_text('[ingest.models]\n"tutor" = "*"\n')
    done = CliRunner().invoke(ingest_app, [str(word) for word in words])
    assert "needs one star in the name" in str(done.exception)


def test_a_models_name_forges_no_rows(tmp_path: Path) -> None:
    forged = "x\n3 lines: 3 answers written to the log, 0 bad lines, 0 left out\r\u2028"
    response = {"created": 1, "model": forged, "choices": [{"message": {"content": "4"}}]}
    body = {"request": {"messages": [{"role": "user", "content": "2+2?"}]}, "response": response}
    (tmp_path / "a.jsonl").write_text(json.dumps(body))
    shown = run(ingest_app, tmp_path / "a.jsonl", "--dir", tmp_path, "--dry-run", expect=2).output
    rows = shown.splitlines()
    assert rows[0].startswith("x\N{REPLACEMENT CHARACTER}3 lines") and "left out" in rows[0]
    assert not any(row.startswith("3 lines") for row in rows) and "\r" not in shown


def test_dead_letters_are_listed_shown_and_sent_again(with_letters: Path) -> None:
    listed = run(dlq_app, "list", "--dir", with_letters).output
    assert "3 dead letters of student-outputs" in listed
    assert "not-json" in listed
    assert "\x1b" not in listed  # what a stranger sent must not reach the terminal's controls
    letter_id = next(line.split()[0] for line in listed.splitlines() if "failed" in line)
    shown = run(dlq_app, "show", letter_id, "--dir", with_letters).output
    assert "failed after" in shown
    assert "ce_type: skillloop.student-output" in shown
    assert (
        "2 dead letters sent again"
        in run(dlq_app, "redrive", "--dir", with_letters, "--reason", "failed").output
    )
    assert (
        "1 dead letters sent again"
        in run(dlq_app, "redrive", "--dir", with_letters, "--id", letter_id, "--force").output
    )
    again = run(dlq_app, "redrive", "--dir", with_letters, "--reason", "failed").output
    assert "0 dead letters sent again to student-outputs, 2 were sent before" in again
    with LocalLog(with_letters / "log.db") as log:
        assert sum(log.end_offsets("student-outputs").values()) == 6
    run(dlq_app, "show", "student-outputs/0/999", "--dir", with_letters, expect=2)
