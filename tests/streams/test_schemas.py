"""The schemas in docs/ are those of the code, and they accept what the codec writes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jsonschema

from streams.codec import encode
from streams.schemas import schema_files
from streams.testing.synthetic import diagnosed, output

FOLDER = Path(__file__).parents[2] / "docs" / "schemas"


def test_the_written_schemas_are_up_to_date() -> None:
    found = {path.name: path.read_text() for path in FOLDER.glob("*.json")}
    assert found == schema_files(), "run `python -m streams.schemas docs/schemas`"


def test_events_fit_their_schemas() -> None:
    for event in (output(1), diagnosed(output(1))):
        record = encode(event)
        schema = json.loads(schema_files()[dict(record.headers)["ce_dataschema"].decode()])
        jsonschema.validate(json.loads(record.value), schema)


def schemas(*words: object, where: Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "streams.schemas", *map(str, words)]
    return subprocess.run(line, cwd=where, capture_output=True, text=True, check=False)


def test_a_folder_of_the_users_keeps_its_own_files(tmp_path: Path) -> None:
    mine = tmp_path / "package.json"
    mine.write_text("{}")
    gone = tmp_path / "skillloop.gone.v1.json"
    gone.write_text("{}")
    done = schemas(tmp_path, where=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"package.json", *schema_files()}
    assert mine.read_text() == "{}"


def test_help_is_help_and_writes_nothing(tmp_path: Path) -> None:
    for words in (["--help"], []):
        done = schemas(*words, where=tmp_path)
        assert "usage:" in done.stdout + done.stderr and done.returncode == (0 if words else 2)
    assert not list(tmp_path.iterdir())
