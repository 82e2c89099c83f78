from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from agent.profile import canonical_bytes
from loop.backends import open_log, open_store
from loop.config import load
from loop.doors import open_registry
from loop.workers.record import open_rounds
from streams.codec import Codec
from streams.events import Event
from streams.state.held_out import HeldOutStore
from streams.topics import TOPICS
from tests.shared import BuildOnce
from tests.warm import run_warm

SKILLLOOP = Path(sys.executable).parent / "skillloop"
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Demo:
    """`skillloop demo` as a user runs it, in a directory of its own, on a small stream."""

    root: Path
    config: Path = HERE / "small.toml"
    extra: dict[str, str] = field(default_factory=dict)

    def run(self, seed: int = 0, **environ: str) -> subprocess.CompletedProcess[str]:
        """The demo, from the start or from where it was killed."""
        return run_warm(SKILLLOOP, *self._demo(seed), environ=self.extra | environ)

    def run_cold(self) -> subprocess.CompletedProcess[str]:
        """The demo in an interpreter that imports everything itself."""
        command = [SKILLLOOP, *self._demo(seed=0)]
        return subprocess.run(
            command, capture_output=True, text=True, env=os.environ | self.extra, check=False
        )

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Another command on the same run."""
        return run_warm(SKILLLOOP, *words, *self._here, environ=self.extra)

    def _demo(self, seed: int) -> list[str | Path]:
        return ["demo", *self._here, "--json", self.figures_file, "--seed", str(seed)]

    @property
    def _here(self) -> list[str | Path]:
        return ["--config", self.config, "--dir", self.root]

    @property
    def figures_file(self) -> Path:
        return self.root.with_suffix(".json")

    def figures(self) -> dict[str, Any]:
        return dict(json.loads(self.figures_file.read_text()))

    def state(self) -> dict[str, Any]:
        """Everything that must not depend on crashes."""
        config = load(self.config)
        store, registry = open_store(config, self.root), open_registry(config, self.root)
        rounds, held_out = open_rounds(store), HeldOutStore(store, "demo")
        left_out = {"trained": {"directory", "curve_sha256"}, "judged": {"run_id"}}
        table = store.buckets()
        with open_log(config, self.root, None) as log:
            events = {
                spec.name: [Codec().decode(record) for record in log.read(spec.name)] for spec in TOPICS
            }
        client = MlflowClient(tracking_uri=f"sqlite:///{self.root / 'mlflow.db'}")
        runs = client.search_runs([client.get_experiment_by_name("demo").experiment_id])
        return {
            "rounds": [
                (r.round_id, r.state, r.record.model_dump(mode="json", exclude=left_out))
                for r in rounds.list("demo")
            ],
            "profile": canonical_bytes(table),
            "route": rounds.route("demo"),
            "held_out": (held_out.latest(), held_out.reserved()),
            "events": {
                name: sorted({_without_run(event) for event in found}) for name, found in events.items()
            },
            "repeated": {
                name: len(found) - len({event.event_id for event in found}) for name, found in events.items()
            },
            "outbox": len(store.pending(10)),
            "versions": [
                (info.version, info.round_id, info.sha256, info.parent) for info in registry.versions()
            ],
            "runs": sorted(run.data.tags["round_id"] for run in runs),
            "champion": registry.champion().version,
        }


def _without_run(event: Event) -> str:
    """An event as text, without the id that MLflow draws at random for the round's run."""
    fields = event.model_dump(mode="json")
    fields.get("detail", {}).pop("run_id", None)
    return json.dumps(fields, sort_keys=True)


@pytest.fixture(scope="session")
def reference(build_once: BuildOnce) -> Demo:
    """One undisturbed small run, the same for all test processes; tests only read it."""

    def build(folder: Path) -> None:
        done = Demo(folder / "run").run_cold()
        assert done.returncode == 0, done.stderr

    return Demo(build_once("reference", build) / "run")


@pytest.fixture(scope="session")
def small_demo() -> type[Demo]:
    """Makes small runs: `small_demo(directory)`."""
    return Demo
