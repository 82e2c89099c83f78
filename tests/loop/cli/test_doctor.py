"""`skillloop doctor` on a task of files with a teacher behind HTTP: what is well, and what is not."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from graphs.testing.server import TeacherServer
from streams.state.store import StateStore
from tests.warm import run_warm
from training.registry import MlflowRegistry

SKILLLOOP = Path(sys.executable).parent / "skillloop"
WIDE = {"COLUMNS": "1000"}
NOBODY = "http://127.0.0.1:9"
CONFIG = """
[engine]
kind = "scripted"
[engine.scripted]
otherwise = "{answer}"
[task]
kind = "files"
catalog = "catalog.jsonl"
pool = "pool.jsonl"
held_out = ["gate.jsonl"]
grade = "text"
[teacher]
kind = "chat"
[teacher.chat]
base_url = "{teacher}"
model = "{model}"
{price}
[registry.mlflow]
tracking_uri = "{registry}"
[monitor]
filters = {filters}
[train]
max_length = {max_length}
[train.sft]
target_modules = ["{target}"]
"""
WELL = {
    "answer": "42", "model": "scripted", "price": "price = { free = true }", "registry": "",
    "filters": '["gold", "teacher"]', "max_length": "64", "target": "q_proj",
}  # fmt: skip


def examine(folder: Path, held_out: int = 400, **settings: str) -> CompletedProcess[str]:
    def question(number: int) -> dict[str, object]:
        return {"id": f"q{number}", "question": f"what is {number}?", "solution": "s", "answer": "a",
                "skills": ["add"]}  # fmt: skip

    rows = {"catalog": [{"skill": "add", "description": "adds"}], "pool": map(question, range(50)),
            "gate": map(question, range(100, 100 + held_out))}  # fmt: skip
    for name, values in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in values))
    (folder / "own.toml").write_text(CONFIG.format(**(WELL | settings)))
    line = ("doctor", "--config", folder / "own.toml", "--dir", folder / "run")
    return run_warm(SKILLLOOP, *line, environ=WIDE)


def verdicts(done: CompletedProcess[str]) -> dict[str, str]:
    """ok or FAIL, by check."""
    rows = [line.split(maxsplit=1) for line in done.stdout.splitlines() if line.startswith(("ok ", "FAIL "))]
    return {row[1].partition(":")[0]: row[0] for row in rows}


@pytest.mark.slow
def test_all_is_well(tmp_path: Path) -> None:
    with TeacherServer() as server:
        done = examine(tmp_path, teacher=server.base_url)
        assert server.calls == {}, "it costs nothing"
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert set(verdicts(done).values()) == {"ok"} and len(verdicts(done)) == 16
    assert "has 'scripted'" in done.stdout and "gold, then teacher" in done.stdout
    assert f"folder: {tmp_path / 'run'} is not there yet; it can be made" in done.stdout
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"catalog.jsonl", "gate.jsonl", "own.toml", "pool.jsonl"}, "looking makes nothing"


@pytest.mark.slow
def test_what_is_not_is_named_and_the_rest_is_checked_all_the_same(tmp_path: Path) -> None:
    wrong = {"answer": " ", "price": "", "registry": NOBODY, "filters": '["prm"]', "max_length": "99999"}
    done = examine(tmp_path, held_out=5, teacher=f"{NOBODY}/v1", **wrong)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    failed = {name for name, verdict in verdicts(done).items() if verdict == "FAIL"}
    assert failed == {"gate", "filters", "teacher", "prices", "registry", "student", "trainer", "champion"}
    told = " ".join(done.stdout.split())
    for words in (
        "the gate can hardly open",
        "'prm' needs a process reward model",
        f"{NOBODY}/v1 does not answer",
        "teacher.chat.price: no price",
        "answers 'what is 100?' with nothing",
        "max_length 99999 is above the base's",
        "not checked, since it needs the registry",
    ):
        assert words in told, told


@pytest.mark.slow
def test_the_wrong_model_and_target(tmp_path: Path) -> None:
    with TeacherServer() as server:
        done = examine(tmp_path, teacher=server.base_url, model="gpt", target="c_attn")
    told = " ".join(done.stdout.split())
    assert done.returncode == 1
    assert "teacher.chat.model 'gpt' is not served at" in told and "it has scripted" in told
    assert "target_modules c_attn: the base has" in told and "q_proj" in told


def contents(database: Path) -> list[str]:
    with sqlite3.connect(database) as connection:
        return list(connection.iterdump())


@pytest.mark.slow
def test_a_mistyped_student_is_registered_nowhere(tmp_path: Path) -> None:
    """It made the model, the experiment and all tables of the servers that it was to look at."""
    mlflow, store, empty = (tmp_path / f"{name}.db" for name in ("mlflow", "store", "empty"))
    MlflowRegistry(f"sqlite:///{mlflow}", "mathbot", tmp_path / "artifacts")
    StateStore(f"sqlite:///{store}").close()
    empty.touch()
    (tmp_path / "own.toml").write_text("")
    run = tmp_path / "run"
    run.mkdir()
    for registry, state in ((mlflow, store), (empty, empty)):
        before = [contents(path) for path in (registry, state)]
        there = WIDE | {
            "SKILLLOOP_STUDENT__NAME": "typoo",
            "SKILLLOOP_REGISTRY__MLFLOW__TRACKING_URI": f"sqlite:///{registry}",
            "SKILLLOOP_STORE__URL": f"sqlite:///{state}",
        }
        done = run_warm(SKILLLOOP, "doctor", "--config", tmp_path / "own.toml", "--dir", run, environ=there)
        assert done.returncode == 0, (done.stdout, done.stderr)  # with all defaults, too
        assert "ok   registry: nothing is there yet" in done.stdout
        assert ("ok   state store: nothing is there yet" in done.stdout) == (state == empty)
        assert f"GiB are free for {run}" in done.stdout and ".doctor-" not in done.stdout
        assert [contents(path) for path in (registry, state)] == before
        assert not list(run.iterdir())


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("setpriv") is None, reason="needs setpriv, to be denied a folder as root too"
)
@pytest.mark.parametrize("command", ["status", "doctor"])
def test_a_folder_that_cannot_be_looked_into_is_one_line(command: str, tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir(0o000)
    line = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", SKILLLOOP, command, "--dir"]
    done = subprocess.run([*line, private / "none"], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert f"{private}" in done.stdout + done.stderr and "Permission denied" in done.stdout + done.stderr
