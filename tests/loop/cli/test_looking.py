"""What `status` and `rounds` show: people, programs, and who named the wrong student."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from loop.workers.record import open_rounds
from streams.clock import SystemClock
from streams.codec import encode
from streams.events import Deployed, Diagnosed
from streams.local_log import LocalLog
from streams.state.outbox import OutboxRelay
from streams.state.store import StateStore
from tests.warm import run_warm

SKILLLOOP = Path(sys.executable).parent / "skillloop"
WIDE = {"COLUMNS": "400"}


def look(run: Path, *words: str, **environ: str) -> CompletedProcess[str]:
    return run_warm(SKILLLOOP, *words, "--dir", run, environ=WIDE | environ)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of the student "demo", of which a person has promoted a version."""
    store, log = StateStore(f"sqlite:///{tmp_path / 'state.db'}"), LocalLog(tmp_path / "log.db")
    rounds = open_rounds(store)
    for number in range(1, 6):
        switch = Deployed(
            event_id=f"d{number}",
            occurred_at=SystemClock().now(),
            student="demo",
            version=number,
            action="promote",
            by=f"ann{number}@host",
            reason=f"because {number}",
        )
        rounds.set_route("demo", number, None, switch)
    OutboxRelay(store, log).step()
    store.close()
    log.close()
    return tmp_path


LOOKING = (
    ["status"],
    ["rounds", "list"],
    ["rounds", "show", "demo-r001"],
    ["profile", "show"],
    ["profile", "pairs"],
)


@pytest.mark.parametrize("command", LOOKING, ids=" ".join)
def test_another_students_run_is_not_an_empty_one(run: Path, command: list[str]) -> None:
    done = look(run, *command, SKILLLOOP_STUDENT__NAME="typoo")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"no student 'typoo' in {run}; it has 'demo'" in done.stderr and "--config" in done.stderr


def test_status_says_who_deployed_what_and_why(run: Path) -> None:
    said = look(run, "status").stdout
    assert "serving version 5 (before it: 4)" in said
    lines = [line for line in said.splitlines() if " by ann" in line]
    assert [line.partition(": ")[2] for line in lines] == [
        f"promote to version {n}, by ann{n}@host: because {n}" for n in (3, 4, 5)
    ]
    told = json.loads(look(run, "status", "--json").stdout)
    assert (told["student"], told["serving"], told["before_it"]) == ("demo", 5, 4)
    assert [event["reason"] for event in told["deployments"]] == ["because 3", "because 4", "because 5"]
    assert told["waiting"] == told["dead_letters"] == told["outbox"] == 0 and told["standing"] is None


def test_pairs_that_fail_together_are_shown_of_the_served_version(run: Path) -> None:
    needs = {("add",): 0, ("gcd",): 3, ("add", "gcd"): 15, ("add", "max"): 20, ("add", "gcd", "max"): 30}
    with LocalLog(run / "log.db") as log:
        for version in (4, 5):
            for needed, wrong in needs.items():
                for number in range(30):
                    failed = number < wrong and version == 5
                    event = Diagnosed(
                        event_id=f"{version}{needed}{number}",
                        occurred_at=SystemClock().now(),
                        student="demo",
                        student_version=version,
                        verdict="abstained" if failed else "correct",
                        judged="incorrect" if failed else "correct",
                        needed=needed,
                        decided_by="gold",
                        teacher="t",
                        bucket=0,
                    )
                    log.append([encode(event)] * 2)  # told twice, it counts once
    said = look(run, "profile", "pairs").stdout
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in said.splitlines() if " + " in line]
    assert [row[0] for row in rows] == ["add + max", "add + gcd"]
    assert rows[0][1:3] == ["30", "0.67"] and rows[0][4:] == ["", ""]  # max is never asked alone
    assert rows[1][1:3] == ["30", "0.50"] and rows[1][4:] == ["0.10", "worse together"]
    assert "150 judged answers of version 5, 2 pairs of skills with 20 or more" in said
    assert "0 pairs" in look(run, "profile", "pairs", "--least", "31").stdout


@pytest.mark.slow
def test_rounds_for_people_and_for_programs(reference: Any) -> None:
    def said(*words: str) -> str:
        done = look(reference.root, *words, "--config", str(reference.config))
        assert done.returncode == 0, done.stderr
        return done.stdout

    listed = json.loads(said("rounds", "list", "--json"))["rounds"]
    one = next(round_ for round_ in listed if round_["version"] is not None)
    shown = json.loads(said("rounds", "show", one["round_id"], "--json"))
    assert {name: shown[name] for name in one} == one
    assert shown["record"]["judged"]["verdict"]["reasons"] and shown["record"]["decision"]["reasons"]
    people = said("rounds", "show", one["round_id"])
    assert "{" not in people and f"judged: version {one['version']}, the gate" in people
    for begin in ("opened ", "data: ", "trained: ", "ended after "):
        assert f"\n{begin}" in people, begin
    cells = [cell.strip() for line in people.splitlines() for cell in line.split("│")]
    assert all(len(cell.partition(".")[2]) <= 4 for cell in cells if cell.replace(".", "").isdigit()), people
    told = json.loads(said("status", "--json"))
    assert told["standing"]["answers"] > 0 and told["standing"]["policy"] and told["deployments"]
