"""SIGKILL at each named point of the loop: started again, it converges to the state of an undisturbed run."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

CHAINS = (
    ("outbox.after-append:3", "stream.before-append:2", "consume.before-commit:2", "consume.after-commit:2"),
    ("curate.assemble.end", "curate.after-upload", "train.step:3", "train.after-upload"),
    ("judge.before-run", "judge.after-run", "deploy.before-alias", "deploy.after-alias"),
)


@pytest.mark.slow
@pytest.mark.long
def test_the_undisturbed_run_closes_the_loop(reference: Any) -> None:
    state = reference.state()
    assert [row[1] for row in state["rounds"]].count("promoted") >= 1
    assert state["champion"] == state["route"][0] > 1
    assert state["outbox"] == 0 and not any(state["repeated"].values())
    assert sorted(set(state["runs"])) == state["runs"]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("points", CHAINS, ids=("events", "making", "switching"))
def test_kills_change_nothing(
    reference: Any, small_demo: Any, tmp_path: Path, points: tuple[str, ...]
) -> None:
    demo = small_demo(tmp_path / "run")
    for point in points:
        killed = demo.run(SKILLLOOP_CRASH_AT=point)
        assert killed.returncode == -signal.SIGKILL, f"{point} was never reached: {killed.stderr[-2000:]}"
    again = demo.run()
    assert again.returncode == 0, again.stderr
    state, expected = demo.state(), reference.state()
    assert state["runs"] == expected["runs"], "one MLflow run per round"
    assert state == expected
