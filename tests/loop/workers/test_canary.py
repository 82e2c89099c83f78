"""A promotion through the canary, before servers with vLLM's API: what gateways and monitor would write is
written by hand."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from agent.profile import ALL, BucketKey, Counts, bucket_of
from loop.config import CanarySection
from loop.workers.deploy import DeployWorker
from loop.workers.record import Trial
from loop.workers.services import Services
from serving.routes import Activity, report
from serving.settings import GatewaySettings
from streams.codec import Codec
from streams.crash import no_crash
from streams.events import Alert, Event
from streams.log import Partition, Record
from streams.state.store import Batch
from tests.loop.workers.conftest import House, judged

QUICK = CanarySection(margin=0.4, min_answers=20, max_answers=400, min_needed=400, limit_s=600, look_s=30)


class Crash(BaseException):
    pass


@dataclass
class Town:
    """A house whose users come through a gateway; `crash_at` is the place at which the worker dies once."""

    house: House
    round_id: str
    crash_at: str = ""
    requests: dict[str, int] = field(default_factory=dict)
    batches: int = 0

    def __post_init__(self) -> None:
        config = self.house.services.config.model_copy(update={"gateway": GatewaySettings(), "canary": QUICK})
        self.house.services = replace(self.house.services, config=config, crash=self._crash)
        self.worker = DeployWorker(self.services)

    @property
    def services(self) -> Services:
        return self.house.services

    @property
    def trial(self) -> Trial | None:
        round_ = self.services.rounds.get(self.round_id)
        assert round_ is not None
        return round_.record.trial

    def state(self) -> tuple[str, str]:
        round_ = self.services.rounds.get(self.round_id)
        assert round_ is not None
        return round_.state, round_.record.ended.error if round_.record.ended else ""

    def versions(self) -> list[int]:
        return [share.version for share in self.house.table.shares]

    def _crash(self, name: str) -> None:
        if name == self.crash_at:
            self.crash_at = ""
            raise Crash

    def minute(self, answers: int, bad: dict[int, int]) -> None:
        """In the next minute each version answers so many; `bad` of them are difficult. Then a look."""
        self.services.clock.sleep(60.0)
        bucket = bucket_of(self.services.clock.now().timestamp(), 60)
        counts = {BucketKey("demo", v, ALL, bucket): Counts(answers, wrong) for v, wrong in bad.items()}
        at, place = self.batches, Partition("student-outputs", 0)
        self.services.store.commit(Batch("g", {place: at}, {place: at + 1}, buckets=counts))
        self.batches += 1
        for share in self.house.table.shares:
            self.requests[share.model] = self.requests.get(share.model, 0) + answers
        self.gateway()
        self.look()

    def gateway(self) -> None:
        report(self.services.routes, Activity(gateway="g", at=time.time(), requests=self.requests))

    def look(self) -> None:
        """What a worker does until it has nothing to do; one that dies is started again."""
        try:
            while self.worker.step():
                pass
        except Crash:
            self.worker = DeployWorker(self.services)
            self.services.clock.sleep(1.0)
            self.look()

    def until_ended(self, answers: int, bad: dict[int, int]) -> int:
        """Minutes until the round has ended."""
        self.look()
        for minutes in range(100):
            if self.state()[0] != "judged":
                return minutes
            self.minute(answers, bad)
        raise AssertionError(f"the canary does not end: {self.trial}")

    def events(self, kind: type[Event]) -> list[Event]:
        sent = [record for _, record in self.services.store.pending(1000)]
        records = [Record(Partition(each.topic, 0), 0, each.key, each.value, each.headers) for each in sent]
        return [event for record in records if isinstance(event := Codec().decode(record), kind)]


@pytest.fixture
def town(house: House) -> Town:
    return Town(house, judged(house.services, 2))


def test_a_canary_gets_its_share_and_is_promoted_when_it_is_shown_to_be_no_worse(town: Town) -> None:
    town.look()
    assert town.state()[0] == "judged" and town.versions() == [1, 2]
    one, two = (share.weight for share in town.house.table.shares)
    assert two / (one + two) == pytest.approx(0.1) and town.house.registry.champion().version == 1
    minutes = town.until_ended(10, {1: 2, 2: 1})
    assert town.state() == ("promoted", "") and town.versions() == [2] and minutes < 20
    assert town.house.registry.champion().version == 2
    trial = town.trial
    assert trial is not None and trial.outcome == "promote" and trial.reference == pytest.approx(0.2)


def test_a_worse_version_goes_back(town: Town) -> None:
    minutes = town.until_ended(10, {1: 1, 2: 9})
    assert town.state() == ("rejected", "canary: worse: difficult") and minutes < 20
    assert town.versions() == [1] and town.house.registry.champion().version == 1


def test_failed_requests_are_told_by_the_gateways(town: Town) -> None:
    town.look()
    one, two = (share.model for share in town.house.table.shares)
    for count in range(1, 6):
        town.services.clock.sleep(60.0)
        activity = Activity(
            gateway="g",
            at=time.time(),
            requests={one: 100 + 10 * count, two: 10 * count},
            failures={two: 9 * count},
        )
        report(town.services.routes, activity)
        town.look()
    town.services.clock.sleep(60.0)
    town.look()
    assert town.state() == ("rejected", "canary: worse: failed")


def test_without_data_it_goes_back_after_its_time(town: Town) -> None:
    assert town.until_ended(0, {}) == QUICK.limit_s / 60
    state, error = town.state()
    assert state == "rejected" and error.startswith("canary: not shown in time: difficult")
    assert town.versions() == [1]


@pytest.mark.parametrize(
    ("place", "worse"),
    [("canary", True), ("after-withdrawal", True), ("canary", False), ("after-alias", False)],
)
def test_a_crash_changes_nothing(town: Town, place: str, worse: bool) -> None:
    town.crash_at = f"deploy.{place}"
    town.until_ended(10, {1: 1, 2: 9 if worse else 1})
    assert not town.crash_at, "it has died once"
    promoted = not worse
    assert town.state()[0] == ("promoted" if promoted else "rejected")
    assert town.versions() == ([2] if promoted else [1])


def test_a_promoted_version_that_becomes_worse_is_rolled_back_with_an_alert(town: Town) -> None:
    town.until_ended(10, {1: 1, 2: 1})
    for _ in range(5):
        town.minute(20, {2: 1})
        town.worker.watch_champion()
    assert town.services.rounds.route("demo") == (2, 1) and not town.events(Alert)
    for _ in range(20):
        town.minute(20, {2: 20})
        town.worker.watch_champion()
    assert town.services.rounds.route("demo") == (1, None) and town.versions() == [1]
    (alert,) = town.events(Alert)
    assert isinstance(alert, Alert) and (alert.kind, alert.student_version) == ("regression", 2)


@pytest.mark.parametrize("switch", [lambda s: s.model_copy(update={"gateway": None}), None])
def test_without_a_gateway_or_when_switched_off_there_is_no_canary(
    town: Town, switch: Callable[..., object] | None
) -> None:
    config = town.services.config
    off = config.model_copy(update={"canary": CanarySection(enabled=False)})
    services: object = replace(town.services, config=switch(config) if switch else off, crash=no_crash)
    assert isinstance(services, Services)
    while DeployWorker(services).step():
        pass
    assert town.state() == ("promoted", "") and town.trial is None
