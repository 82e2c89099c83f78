"""docs/configuration.md is what the models say."""

from __future__ import annotations

import subprocess
import sys

from loop.reference import document
from loop.shipped import ROOT


def test_the_written_page_is_up_to_date() -> None:
    assert (ROOT / "docs" / "configuration.md").read_text() == document(), "run `make config-docs`"


def test_defaults_are_those_of_the_owner_and_units_and_bounds_are_told() -> None:
    loop, stat = document().split("## The offline method")
    for row in (
        "| `bucket_s` | integer | `60` | > 0 | seconds |",
        "| `usd_per_day` | number | none | >= 0 | US dollars |",
        "| `alpha` | number | `0.04` | > 0, < 0.5 |  |",
        '| `base` | path or text | `"builtin:llama"` |  |  |',
        "| `base_url` | text | **required** |  |  |",
    ):
        assert row in loop
    assert "| `lora_dropout` | number | `0.05` |" in stat and "| `lora_dropout` | number | `0.0` |" in loop
    assert ">>>" not in loop + stat and stat.count("As in the loop's file.") > 3


def test_help_is_help_and_writes_nothing() -> None:
    page = ROOT / "docs" / "configuration.md"
    before = page.stat().st_mtime_ns
    line = [sys.executable, "-m", "loop.reference", "--help"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "usage: python -m loop.reference" in done.stdout
    assert page.stat().st_mtime_ns == before
