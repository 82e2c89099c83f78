"""A server that shares a device with training: it sleeps while a round trains, and serves again whatever
becomes of the round."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import Any, cast
from weakref import ref

import pytest
import torch

from agent.budget import Usage
from agent.decision import Decision, SkillTarget
from agent.items import Example, Provenance
from graphs.curate.plan import CurationReport
from loop.config import load
from loop.loading import ConfigError
from loop.workers.decide import changed
from loop.workers.live import Reconciler
from loop.workers.record import Curated, Opened, RoundParts
from loop.workers.rest import device_freed
from loop.workers.services import DATASET, Services
from loop.workers.train import TrainWorker
from serving.engine import EngineUnavailable
from serving.routes import rest, resting
from serving.testing.fake_vllm import FakeVllm
from serving.vllm_engine import VllmEngine
from streams.state.rounds import Round
from tests.loop.workers.conftest import NOW, House
from training.errors import TrainingError
from training.mix import write_dataset

Share = Callable[..., Services]


@dataclass
class WatchedTrainer:
    """Looks at the house, then fails."""

    look: Callable[[], object]

    def train(self, job: Any, on_progress: Any) -> Any:
        self.look()
        raise TrainingError("as ordered")


@pytest.fixture
def share(house: House) -> Iterator[Callable[..., Services]]:
    """The house's services where these servers share the device, with a round to train."""
    with ExitStack() as stack:
        yield partial(sharing, house, stack)


def sharing(house: House, stack: ExitStack, *sleepers: int, trainer: Any = None) -> Services:
    vllm = house.services.config.engine.vllm
    urls = tuple(house.servers[number].url for number in sleepers)
    sleepy = vllm.model_copy(update={"sleepers": urls, "reconcile_s": 0.0})
    engine = VllmEngine(sleepy, house.services.task.base_dir)
    stack.callback(engine.close)
    config = house.services.config
    config = config.model_copy(update={"engine": config.engine.model_copy(update={"vllm": sleepy})})
    target = SkillTarget(skill="add", weight=1.0, examples=2, strategy="select")
    decision = Decision(kind="select", skills=(target,), examples=2, steps=1, reasons=("test",))
    made = Provenance(strategy="select", skill="add", source_ids=("p",))
    examples = [Example(example_id="e", prompt="1 + 1", completion="2", skills=("add",), provenance=made)]
    manifest = write_dataset(house.services.round_dir("demo-r001") / Path(DATASET).name, examples)
    report = CurationReport(requested={"add": 1}, accepted={"add": 1}, replay=0, dropped={}, usage=Usage())
    record = RoundParts(
        decision=decision,
        opened=Opened(champion=1, at=NOW, answers=0),
        curated=Curated(manifest=manifest, report=report),
    )
    round_ = Round("demo-r001", "demo", 1, "curated", None, record)
    assert house.services.rounds.open(round_, changed(round_, "curated", {}))
    return replace(house.services, config=config, engine=engine, trainer=trainer)


def led_to(house: House) -> list[str]:
    return [replica.url for replica in house.table.replicas]


def test_it_sleeps_while_the_round_trains_and_serves_again_when_that_fails(
    house: House, share: Share
) -> None:
    shared, other = house.servers
    seen: list[object] = []
    trainer = WatchedTrainer(lambda: seen.append((shared.asleep, other.asleep, led_to(house))))
    services = share(0, trainer=trainer)
    reconciler = Reconciler(services)
    reconciler.step()
    assert led_to(house) == [shared.url, other.url]
    trained = TrainWorker(services)
    assert not trained.step()
    assert seen == [(True, False, [other.url])]
    assert not shared.asleep and led_to(house) == [shared.url, other.url]


def test_without_another_replica_users_stay_with_the_one_that_sleeps(house: House, share: Share) -> None:
    seen: list[object] = []
    services = share(0, 1, trainer=WatchedTrainer(lambda: seen.append(led_to(house))))
    house.reconcile()
    TrainWorker(services).step()
    assert seen == [[server.url for server in house.servers]]


@pytest.mark.parametrize("sleepers", [(0,), (0, 1)])
def test_a_server_restarted_while_a_round_trains_is_sent_back(
    sleepers: tuple[int, ...], house: House, share: Share
) -> None:
    shared, seen = house.servers[0], list[bool]()
    services = share(*sleepers)

    def restarted() -> None:
        shared.asleep = False
        Reconciler(services).step()
        seen.append(shared.asleep)

    services = replace(services, trainer=WatchedTrainer(restarted))
    TrainWorker(services).step()
    assert seen == [True] and not shared.asleep


def test_one_that_did_not_wake_after_the_training_sends_nobody_back(house: House, share: Share) -> None:
    services = share(0, 1)
    assert services.rounds.claim("curated", "a worker that still uploads", 60.0) is not None
    rest(services.routes, [house.servers[1].url])
    Reconciler(services).step()
    assert not any(server.asleep for server in house.servers)


def test_a_dead_trainers_server_is_woken_once_nobody_trains(house: House, share: Share) -> None:
    shared, other = house.servers
    services = share(0)
    house.registry.promote(2)
    reconciler = Reconciler(services)
    reconciler.step()
    assert services.rounds.claim("curated", "a worker that dies", 60.0) is not None
    shared.asleep = True
    reconciler.step()
    assert shared.asleep and led_to(house) == [other.url], "a round may be training still"
    services.clock.sleep(61)  # type: ignore[attr-defined]
    reconciler.step()
    assert not shared.asleep and led_to(house) == [shared.url, other.url]


def test_a_worker_that_lost_its_round_does_not_wake_the_server_under_its_successor(
    house: House, share: Share
) -> None:
    shared, other = house.servers

    def frozen() -> None:
        services.clock.sleep(61)  # type: ignore[attr-defined]
        assert services.rounds.claim("curated", "a successor", 60.0) is not None

    services = share(0, trainer=WatchedTrainer(frozen))
    Reconciler(services).step()
    TrainWorker(services).step()
    assert shared.asleep and led_to(house) == [other.url]


def test_a_round_that_begins_while_the_deploy_worker_wakes_finds_the_server_asleep(
    house: House, share: Share
) -> None:
    shared, other = house.servers
    begun, woken, seen = Event(), Event(), list[object]()

    def look() -> None:
        begun.set()
        woken.wait(5.0)
        seen.append((shared.asleep, led_to(house)))

    services = share(0, trainer=WatchedTrainer(look))
    engine = cast(VllmEngine, services.engine)
    Reconciler(services).step()
    shared.asleep, wake = True, engine.wake

    def slow_wake() -> tuple[str, ...]:
        engine.wake = wake  # type: ignore[method-assign]
        round_ = Thread(target=TrainWorker(services).step)
        round_.start()
        rounds.append(round_)
        begun.wait(0.5)
        return wake()

    rounds: list[Thread] = []
    engine.wake = slow_wake  # type: ignore[method-assign]
    Reconciler(services).step()
    woken.set()
    rounds[0].join()
    assert seen == [(True, [other.url])]


def test_what_is_no_longer_a_sleeper_rests_no_more(house: House, share: Share) -> None:
    """The setting was taken out after a train worker was killed; the server was started anew."""
    services = share()
    rest(services.routes, [house.servers[0].url])
    Reconciler(services).step()
    assert led_to(house) == [server.url for server in house.servers]


class Student:
    """Some of the device's memory; it and its trainer refer to each other."""

    def __init__(self) -> None:
        self.trainer = {"model": self}


@pytest.mark.parametrize("fails", [False, True])
def test_the_device_s_memory_is_given_back_before_a_server_wakes(
    house: House, share: Share, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    services = share(0)
    (round_,) = services.rounds.list("demo")
    engine, held, seen = cast(VllmEngine, services.engine), list[ref[Student]](), list[object]()
    wake = engine.wake

    def watched() -> tuple[str, ...]:
        seen.append(held[0]())
        return wake()

    def train() -> None:
        student = Student()
        held.append(ref(student))
        try:
            if fails:
                raise MemoryError
        except MemoryError as exc:
            raise TrainingError("out of memory") from exc

    engine.wake = watched  # type: ignore[method-assign]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: seen.append("emptied"))
    gc.disable()
    try:
        with pytest.raises(TrainingError) if fails else nullcontext(), device_freed(services, round_):
            train()
    finally:
        gc.enable()
    assert seen == ["emptied", None]


def test_a_sleeping_server_is_asked_nothing(house: House, share: Share) -> None:
    shared, other = house.servers
    engine = share(0).engine
    engine.load(1, None)
    shared.asleep = True
    asked = shared.calls["/v1/completions"]
    assert len(engine.generate(["2 + 2"] * 6, 1)) == 6
    assert shared.calls["/v1/completions"] == asked and other.answered


def test_where_all_sleep_that_is_what_is_said(house: House, share: Share) -> None:
    engine = share(0, 1).engine
    for server in house.servers:
        server.asleep = True
    with pytest.raises(EngineUnavailable, match="sleeps while a round trains") as caught:
        engine.load(1, None)
    assert "start one" not in str(caught.value)


def test_a_server_that_does_not_answer_trains_nothing(house: House, share: Share) -> None:
    seen: list[object] = []
    services = share(0, trainer=WatchedTrainer(lambda: seen.append(1)))
    house.servers[0].stop()
    assert not TrainWorker(services).step() and not seen
    (waiting,) = services.rounds.list("demo")
    assert (waiting.state, waiting.failures) == ("curated", 0), "it is not the round's fault"
    house.servers[0].start()


def test_one_that_is_away_keeps_no_user_from_the_others(house: House, share: Share) -> None:
    services = share(0)
    house.servers[0].stop()
    Reconciler(services).step()
    assert led_to(house) == [house.servers[1].url]
    house.servers[0].start()


def test_one_that_does_not_wake_keeps_no_user_from_those_that_do(house: House, share: Share) -> None:
    """Both share the device; while the round trains, the machine of one is lost."""
    lost, other = house.servers
    services = share(0, 1, trainer=WatchedTrainer(lost.stop))
    Reconciler(services).step()
    TrainWorker(services).step()
    assert not other.asleep and resting(services.routes) == (lost.url,)
    assert led_to(house) == [other.url]
    lost.start()
    Reconciler(services).step()
    assert resting(services.routes) == ()


def test_where_one_is_away_the_others_are_not_sent_to_sleep(house: House, share: Share) -> None:
    """The train worker tries again every minute at most: users of the others would wait each time."""
    services = share(0, 1, trainer=WatchedTrainer(lambda: None))
    house.servers[1].stop()
    assert not TrainWorker(services).step()
    assert not house.servers[0].calls["/sleep?level=1&mode=wait"]
    house.servers[1].start()


def test_one_that_cannot_sleep_is_named_and_fails_no_round(house: House, share: Share) -> None:
    services = share(0, trainer=WatchedTrainer(lambda: None))
    started_without_dev_mode(house.servers[0])
    with pytest.raises(EngineUnavailable, match="start it with VLLM_SERVER_DEV_MODE=1"):
        services.engine.sleep()  # type: ignore[attr-defined]
    assert not TrainWorker(services).step()
    (waiting,) = services.rounds.list("demo")
    assert (waiting.state, waiting.failures) == ("curated", 0), "it waits until the server is mended"


def test_one_that_cannot_sleep_fails_no_evaluation_that_others_can_answer(house: House, share: Share) -> None:
    engine = share(0).engine
    started_without_dev_mode(house.servers[0])
    engine.load(1, None)
    assert len(engine.generate(["2 + 2"] * 6, 1)) == 6


def started_without_dev_mode(server: FakeVllm) -> None:
    reply = server.reply
    server.reply = lambda method, path, body: reply(  # type: ignore[method-assign]
        method, path.replace("/is_sleeping", "/unknown"), body
    )


def test_sleepers_are_replicas() -> None:
    vllm = {"replicas": ["http://a:1"], "sleepers": ["http://b:1"]}
    with pytest.raises(ConfigError, match="none of engine"):
        load(None, overrides={"engine": {"vllm": vllm}})
