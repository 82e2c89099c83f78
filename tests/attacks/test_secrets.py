"""Attacks on what others must not see: passwords in messages, answers and models in a run's folder."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from loop.config import ConfigError, load
from training.errors import RegistryError, RegistryUnavailable
from training.registry import MlflowRegistry

COMMAND = Path(sys.executable).with_name("skillloop")


@pytest.mark.parametrize("uri", ["mysql://loop:s3cr/et@h/db", "mysql://loop:s3cr@et@h", "mysql://:s3cret@h"])
def test_a_registry_uri_is_shown_without_its_password(uri: str) -> None:
    with pytest.raises(RegistryError, match="tracking URI") as caught:
        MlflowRegistry(uri, "student")
    assert "s3cr" not in str(caught.value) and "***" in str(caught.value)


def test_an_absent_registry_is_named_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(RegistryUnavailable) as caught:
        MlflowRegistry("http://loop:s3cret@127.0.0.1:9", "student")
    assert "s3cret" not in str(caught.value)


def test_a_password_of_digits_and_a_missing_sibling_show_nothing(tmp_path: Path) -> None:
    """The password was printed as a number, or with its whole section."""
    path = tmp_path / "some.toml"
    path.write_text('[log]\nkind = "kafka"\n[log.kafka]\nsecurity_protocol = "SASL_PLAINTEXT"\n')
    with pytest.raises(ConfigError, match="sasl_username") as caught:
        load(path, {"SKILLLOOP_LOG__KAFKA__SASL_PASSWORD": "20261125"})
    assert "20261125" not in str(caught.value)
    path.write_text(path.read_text() + "sasl_password = 20261125\n")
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert "20261125" not in str(caught.value)


def test_a_runs_folder_is_its_owners_alone(tmp_path: Path) -> None:
    run, file = tmp_path / "run", tmp_path / "answers.jsonl"
    file.write_text('{"occurred_at": "2026-01-01T00:00:00Z", "question": "q", "answer": "a"}\n')
    subprocess.run([COMMAND, "ingest", file, "--dir", run], check=True, env=os.environ, umask=0o022)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (run, *run.rglob("*"))}
    assert len(modes) > 2 and not [name for name, mode in modes.items() if mode & 0o077], modes
