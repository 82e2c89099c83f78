"""The schemas in docs/ are those of the code, and they accept what the codec writes."""

from __future__ import annotations

import json
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
