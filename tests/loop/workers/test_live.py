"""What users get: deploy worker and reconciler before servers with vLLM's API."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from loop.workers.deploy import DeployWorker
from loop.workers.live import lead_users
from serving.engine import EngineUnavailable
from serving.routes import Activity, Share, report
from tests.loop.workers.conftest import House, judged


def test_users_are_led_to_the_champion_on_every_server(house: House) -> None:
    house.reconcile()
    assert house.table.shares == (Share(version=1, model="base"),)
    assert {replica.url for replica in house.table.replicas} == {server.url for server in house.servers}
    assert house.services.rounds.route("demo") == (1, None)
    house.registry.promote(2)  # by hand, in MLflow
    house.reconcile()
    (share,) = house.table.shares
    assert share.version == 2 and share.model in house.servers[0].adapters()
    assert house.services.rounds.route("demo") == (2, 1) and house.loaded() == [[2], [2]]
    revision = house.table.revision
    house.reconcile()
    assert house.table.revision == revision, "nothing changed, so nothing is written"


def test_old_versions_stay_until_no_gateway_needs_them(house: House) -> None:
    for version in (2, 3):
        house.registry.promote(version)
        house.reconcile()
    assert house.loaded() == [[2, 3], [2, 3]], "the predecessor stays, for a way back without a load"
    (two,) = (name for name in house.servers[0].adapters() if "-v2-" in name)
    busy = Activity(gateway="g", at=time.time(), revision=house.table.revision + 1, in_flight={two: 1})
    report(house.services.routes, busy)
    house.registry.promote(4)
    house.reconcile()
    assert house.loaded() == [[2, 3, 4], [2, 3, 4]], "an answer of version 2 is under way"
    report(house.services.routes, busy.model_copy(update={"in_flight": {}}))
    house.reconcile()
    assert house.loaded() == [[3, 4], [3, 4]]


def test_a_restarted_server_gets_the_champion_before_it_gets_users(house: House) -> None:
    steady, other = house.servers
    house.registry.promote(2)
    house.reconcile()
    other.stop()
    house.reconcile()
    assert [replica.url for replica in house.table.replicas] == [steady.url]
    other.start()
    other.mute = True  # it comes back and serves the base under the adapter's name
    house.reconcile()
    assert [replica.url for replica in house.table.replicas] == [steady.url] and house.loaded() == [[2], []]
    other.mute = False
    house.reconcile()
    assert len(house.table.replicas) == 2 and house.loaded() == [[2], [2]]


def test_an_outage_of_all_servers_changes_nothing_and_ends_nothing(house: House) -> None:
    house.registry.promote(2)
    house.reconcile()
    before = house.table
    for server in house.servers:
        server.stop()
    house.reconcile()
    assert house.table == before
    with pytest.raises(EngineUnavailable):
        lead_users(house.services, 2)
    house.servers[0].start()
    house.reconcile()
    assert house.loaded() == [[2], []] and len(house.table.replicas) == 1


def test_a_judged_round_is_promoted_on_the_servers(house: House) -> None:
    round_id = judged(house.services, 2)
    worker = DeployWorker(house.services)
    while worker.step():
        pass
    finished = house.services.rounds.get(round_id)
    assert finished is not None and finished.state == "promoted", finished
    assert house.registry.champion().version == 2 and house.table.shares[0].version == 2
    assert house.services.rounds.route("demo") == (2, None) and house.loaded() == [[2], [2]]


def test_a_server_that_refuses_leaves_the_champion_where_it_is(house: House) -> None:
    house.reconcile()
    before = house.table
    round_id = judged(house.services, 2)
    house.servers[1].refuses = "no room"
    worker = DeployWorker(house.services)
    worker.step()
    waiting = house.services.rounds.get(round_id)
    assert waiting is not None and waiting.state == "judged" and "no room" in str(waiting.error)
    assert house.registry.champion().version == 1 and house.table == before and house.loaded() == [[], []]


@pytest.mark.parametrize("place", ["deploy.before-alias", "deploy.after-alias", "deploy.after-table"])
def test_a_crash_at_any_step_ends_where_it_would_have(house: House, place: str) -> None:
    class Crash(BaseException):
        pass

    def crash(name: str) -> None:
        if name == place and not crashed:
            crashed.append(name)
            raise Crash

    crashed: list[str] = []
    services = replace(house.services, crash=crash)
    round_id = judged(services, 2)
    with pytest.raises(Crash):
        DeployWorker(services).step()
    services.clock.sleep(1.0)
    worker = DeployWorker(services)
    while worker.step():
        pass
    finished = services.rounds.get(round_id)
    assert finished is not None and finished.state == "promoted"
    assert house.table.shares[0].version == 2 and services.rounds.route("demo") == (2, None)
