"""The demo on a small stream, as a user runs it: the figures of table, store, log and MLflow agree."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from agent.profile import ALL
from loop.backends import open_log, open_store
from loop.config import load
from loop.doors import open_registry
from loop.workers.record import open_rounds
from streams.codec import Codec
from streams.events import Deployed

FIGURES = {
    "rounds", "skills_truly_missing", "skills_found", "precision", "recall", "worst_skill_loss",
    "worst_mastered_loss",
    "served_accuracy_first", "served_accuracy_last", "seconds", "champion_version",
    *(
        f"{name}_accuracy_{when}"
        for name in ("shifted", "missing", "original", "mastered", "ood")
        for when in ("before", "after")
    ),
}  # fmt: skip


@pytest.mark.slow
def test_every_promised_figure_is_written(reference: Any) -> None:
    figures = reference.figures()
    assert set(figures) >= FIGURES
    assert all(
        set(row) >= {"id", "kind", "skills", "examples", "reasons", "promoted"} for row in figures["rounds"]
    )
    assert (reference.root / "timeline.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_table_store_and_mlflow_agree(reference: Any) -> None:
    config, figures = load(reference.config), reference.figures()
    rounds = open_rounds(open_store(config, reference.root))
    registry = open_registry(config, reference.root)
    client = MlflowClient(tracking_uri=f"sqlite:///{reference.root / 'mlflow.db'}")
    stored = {round_.round_id: round_ for round_ in rounds.list("demo")}
    assert [row["id"] for row in figures["rounds"]] == list(stored)
    versions = {info.round_id: info for info in registry.versions()}
    for row in figures["rounds"]:
        round_, info = stored[row["id"]], versions[row["id"]]
        assert row["promoted"] == (round_.state == "promoted")
        assert client.get_model_version("demo", str(info.version)).tags["gate"] == (
            "open" if row["promoted"] else "closed"
        )
        run = client.get_run(round_.run_id)
        assert (
            run.data.params["skills"].split(",") == row["skills"] and run.data.params["kind"] == row["kind"]
        )
        assert int(run.data.params["examples"]) == row["examples"]
        for skill, gain in round_.record.need_judged().gains.items():
            assert run.data.metrics[f"after/skill/{skill}"] - run.data.metrics[
                f"before/skill/{skill}"
            ] == pytest.approx(gain)
    route = rounds.route("demo")
    assert route is not None and figures["champion_version"] == registry.champion().version == route[0]


@pytest.mark.slow
def test_every_question_counts_once(reference: Any) -> None:
    config = load(reference.config)
    store = open_store(config, reference.root)
    with open_log(config, reference.root, None) as log:
        asked, diagnosed = (len(list(log.read(topic))) for topic in ("student-outputs", "diagnoses"))
    counted = sum(counts[0] for key, counts in store.buckets("demo").items() if key[2] == ALL)
    watched = sum((store.watermarks("demo").get(version) or (0, 0.0))[0] for version in range(1, 10))
    assert asked == diagnosed == counted == watched == config.demo.questions


@pytest.mark.slow
def test_a_finished_run_starts_again_and_says_the_same(
    reference: Any, small_demo: Any, tmp_path: Path
) -> None:
    demo = small_demo(tmp_path / "run")
    shutil.copytree(reference.root, demo.root)
    assert demo.run().returncode == 0
    before, after = reference.figures(), demo.figures()
    assert {key: value for key, value in after.items() if key != "seconds"} == {
        key: value for key, value in before.items() if key != "seconds"
    }


@pytest.mark.slow
def test_another_seed_in_the_same_directory_is_refused(reference: Any) -> None:
    done = reference.run(seed=1)
    assert done.returncode == 1
    assert "other settings (seed differ)" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_other_student_goes_the_same_way(small_demo: Any, tmp_path: Path) -> None:
    demo = small_demo(tmp_path / "run", extra={"SKILLLOOP_STUDENT__BASE": "builtin:qwen"})
    done = demo.run()
    assert done.returncode == 0, done.stderr
    assert any(row["promoted"] for row in demo.figures()["rounds"])


LOOKING = (
    ["status"],
    ["profile", "show"],
    ["profile", "rebuild"],
    ["rounds", "list"],
    ["rounds", "show", "demo-r001"],
    ["doctor"],
)


@pytest.mark.slow
@pytest.mark.parametrize("command", LOOKING, ids=" ".join)
def test_commands_that_look(reference: Any, command: list[str]) -> None:
    done = reference.command(*command)
    assert done.returncode == 0, (done.stdout, done.stderr)


@pytest.mark.slow
def test_the_doctor_takes_a_relative_folder(reference: Any) -> None:
    done = replace(reference, root=Path(os.path.relpath(reference.root))).command("doctor")
    assert done.returncode == 0, (done.stdout, done.stderr)


def _status_names_what_rollback_goes_to(demo: Any) -> None:
    """After a rollback, and as often as there is something to go back to."""
    while True:
        status = demo.command("status")
        before = re.search(r"before it: (\w+)", status.stdout)
        assert before is not None, status
        done = demo.command("rollback", "--reason", "again")
        if before[1] == "none":
            assert done.returncode == 1 and "no previous champion" in done.stderr, (status, done)
            return
        assert done.returncode == 0 and f"version {before[1]} of" in done.stdout, (status, done)


@pytest.mark.slow
def test_rolling_back_and_promoting_again(reference: Any, small_demo: Any, tmp_path: Path) -> None:
    demo = small_demo(tmp_path / "run")
    shutil.copytree(reference.root, demo.root)
    rounds = open_rounds(open_store(load(demo.config), demo.root))
    champion, previous = rounds.route("demo") or (0, 0)
    unsigned = demo.command("rollback")
    assert unsigned.returncode == 2 and "--reason" in unsigned.stderr
    assert demo.command("rollback", "--reason", "a test", "--by", "me").returncode == 0
    assert (
        (rounds.route("demo") or (0, 0))[0]
        == previous
        == open_registry(load(demo.config), demo.root).champion().version
    )
    _status_names_what_rollback_goes_to(demo)
    assert demo.command("promote", str(champion), "--reason", "better").returncode == 0
    assert (rounds.route("demo") or (0, 0))[0] == champion
    with open_log(load(demo.config), demo.root, None) as log:
        deployed = [Codec().decode(record) for record in log.read("deployments")]
    switches = [event for event in deployed if isinstance(event, Deployed) and not event.round_id][1:]
    assert [(event.action, event.reason) for event in switches[:: len(switches) - 1]] == [
        ("rollback", "a test"),
        ("promote", "better"),
    ]
    assert switches[0].by == "me" and "@" in switches[-1].by
    times = [event.occurred_at for event in deployed]
    assert times == sorted(times), "deployments does not run backwards"
    by_round = [event for event in deployed if isinstance(event, Deployed) and event.round_id]
    assert all(event.as_of and event.as_of <= event.occurred_at for event in by_round)
    refused = demo.command("promote", "99", "--reason", "none")
    assert refused.returncode == 1 and "99" in refused.stderr and "Traceback" not in refused.stderr
