"""What waits for a person: asked once, shown and decided on the command line, kept over a restart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from loop.cli.main import app
from loop.config import RoundsSection
from loop.workers.approve import waiting
from loop.workers.curate import CurateWorker
from loop.workers.deploy import DeployWorker
from loop.workers.services import Services
from loop.workers.train import TrainWorker
from streams.state.approvals import ApprovalAsked, ApprovalStore, Decided
from tests.loop.workers.conftest import NOW, House, judged
from tests.loop.workers.test_curate import session as session

Session = Callable[..., Services]


def said(root: Path, *words: str, code: int = 0) -> str:
    """What `skillloop approvals` says."""
    done = CliRunner().invoke(app, ["approvals", *words, "--dir", str(root)])
    assert done.exit_code == code, done.output
    return done.output


def asking(services: Services, what: str) -> Services:
    rounds = RoundsSection.model_validate({"approve": what, "look_s": 0.001})
    return replace(services, config=services.config.model_copy(update={"rounds": rounds}))


def state(services: Services) -> tuple[str, str]:
    (round_,) = services.rounds.list("demo")
    return round_.state, round_.record.ended.error if round_.record.ended else ""


@pytest.mark.parametrize("verb", ["approve", "reject"])
def test_a_rounds_data_waits_for_a_person(session: Session, verb: str) -> None:
    services = asking(session("policy"), "data")
    worker = CurateWorker(services)
    assert not worker.step() and worker.waiting == "demo-r001" and state(services) == ("planned", "")
    assert "demo-r001: train on 6 examples" in said(services.root, "list")
    assert [asked.subject for asked in waiting(services.store, services.rounds, "demo")] == ["data"]
    shown = said(services.root, "show", "demo-r001")
    assert "synthesize add" in shown and "6 of 6 examples" in shown
    asked = len(services.task.teacher.calls)  # type: ignore[attr-defined]
    said(services.root, verb, "demo-r001", "--reason", "as agreed", "--by", "ann")
    assert "nothing waits" in said(services.root, "list")
    restarted = CurateWorker(services)
    assert restarted.step() and restarted.waiting is None
    assert asked == len(services.task.teacher.calls), "nothing is paid for twice"  # type: ignore[attr-defined]
    if verb == "approve":
        assert state(services) == ("curated", "")
    else:
        assert state(services) == ("rejected", "rejected by ann: as agreed")
        assert not TrainWorker(services).step()


@pytest.mark.parametrize("verb", ["approve", "reject"])
def test_a_deployment_waits_for_a_person(house: House, verb: str) -> None:
    services = asking(house.services, "deploy")
    judged(services, 2)
    assert not DeployWorker(services).step() and state(services) == ("judged", "")
    assert house.loaded() == [[], []], "no server is touched before the person has decided"
    shown = said(services.root, "show", "demo-r001")
    assert "deploy version 2" in shown
    said(services.root, verb, "demo-r001", "--reason", "as agreed", "--by", "ann")
    services.clock.sleep(1.0)
    worker = DeployWorker(services)
    while worker.step():
        pass
    told = ("promoted", "") if verb == "approve" else ("rejected", "rejected by ann: as agreed")
    assert state(services) == told
    assert house.registry.champion().version == (2 if verb == "approve" else 1)


def test_a_decision_is_of_what_was_asked(session: Session) -> None:
    approvals = ApprovalStore(session("policy").store)
    asked = ApprovalAsked("demo-r001", "demo", "data", "one", NOW, {"examples": 1})
    assert approvals.ask(asked) is None and approvals.ask(asked) is None
    yes, no = Decided(True, "ann", "fine"), Decided(False, "bob", "not fine")
    assert approvals.decide(asked, yes) and not approvals.decide(asked, no)
    assert approvals.ask(asked) == yes and not approvals.pending("demo")
    other = replace(asked, digest="two")
    assert approvals.ask(other) is None and approvals.pending("demo") == [other]
    assert not approvals.decide(asked, yes), "that is no longer what is asked"


def test_what_waits_for_nobody_is_refused_and_a_decision_needs_a_reason(session: Session) -> None:
    root = session("policy").root
    said(root, "approve", "demo-r001", code=2)
    said(root, "approve", "demo-r001", "--reason", " ", code=2)
    done = CliRunner().invoke(app, ["approvals", "show", "demo-r001", "--dir", str(root)])
    assert done.exit_code == 1 and "waits for nobody" in str(done.exception)
