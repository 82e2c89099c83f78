"""Run by test_crash.py: kills `skillloop stat` in a process of its own at every crash point, runs it again,
and reports.

Usage: crash_stat.py FOLDER SPEC... with a `stat.toml` in FOLDER. Processes are forked, so that everything is
imported once. One line of JSON per crash point.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from functools import partial
from pathlib import Path

from loop.offline import pipeline
from loop.offline.config import load_stat
from loop.offline.opening import open_bench
from streams.crash import ENVIRONMENT
from tests.children import in_child, was_killed

STRATEGIES = ("stat-sel", "stat-syn")


def attempt(folder: Path, crash: str) -> None:
    """One process's life: both strategies as far as the data set; every stage that was done gets a line."""
    done = os.open(folder / "stages", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for strategy in STRATEGIES:
        with open_bench(
            load_stat(folder / "stat.toml"), folder / "run", strategy, environ={ENVIRONMENT: crash}
        ) as bench:  # type: ignore[arg-type]
            pipeline.run_stages(
                bench,
                "dataset",
                lambda event, stage, _: event == "done" and os.write(done, f"{stage}\n".encode()),
            )


def main() -> None:
    source = Path(sys.argv[1])
    files = [path for path in source.iterdir() if path.is_file()]
    for spec in ("none", *sys.argv[2:]):
        folder = source / spec.replace(":", "-")
        folder.mkdir()
        for path in files:
            shutil.copy(path, folder)
        status = in_child(partial(attempt, folder, spec)) if spec != "none" else 0
        resumed = in_child(partial(attempt, folder, ""))
        results = {
            path.name: path.read_text()
            for path in sorted((folder / "run").iterdir())
            if path.suffix in {".jsonl", ".md"}
        }
        report = {
            "spec": spec,
            "killed": was_killed(status),
            "resumed": resumed,
        }
        lines = {name: (folder / name).read_text().splitlines() for name in ("stages", "calls.jsonl")}
        sys.stdout.write(
            json.dumps(
                {**report, "results": results, "stages": lines["stages"], "calls": lines["calls.jsonl"]}
            )
            + "\n"
        )


if __name__ == "__main__":
    main()
