"""`skillloop doctor` on a task of files with a teacher behind HTTP: what is well, and what is not."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from graphs.testing.server import TeacherServer
from tests.warm import run_warm

SKILLLOOP = Path(sys.executable).parent / "skillloop"
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
    return run_warm(SKILLLOOP, "doctor", "--config", folder / "own.toml", "--dir", folder / "run")


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
