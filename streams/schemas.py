"""The JSON Schemas of all event types as files: `python -m streams.schemas docs/schemas` writes them, a test
keeps them up to date."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from streams.codec import json_schemas


def schema_files() -> dict[str, str]:
    """File name -> text."""
    return {
        name: json.dumps(schema, indent=2, sort_keys=True) + "\n" for name, schema in json_schemas().items()
    }


def write(folder: Path) -> None:
    """Write the schemas; those of event types that are gone are removed, other files are left alone."""
    folder.mkdir(parents=True, exist_ok=True)
    files = schema_files()
    for old in folder.glob("skillloop.*.v*.json"):
        if old.name not in files:
            old.unlink()
    for name, text in files.items():
        (folder / name).write_text(text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the JSON Schema of every event type, a file each.")
    parser.add_argument("folder", type=Path, help="it is made if it is not there")
    write(parser.parse_args().folder)
