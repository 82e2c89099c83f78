from __future__ import annotations

import os
import time
from pathlib import Path
from typing import cast

import pytest
from pydantic import ValidationError

from serving.gateway.app import Gateway
from serving.gateway.exchange import Desk
from serving.routes import (
    ACTIVITY,
    FRESH_S,
    REMOVED_S,
    Activity,
    Replica,
    RouteFile,
    RoutesUnusable,
    RouteTable,
    Share,
    drained,
    report,
    sweep,
)
from serving.settings import GatewaySettings
from streams.files import write_json


def table(*weights: float) -> RouteTable:
    shares = [Share(version=n, model=f"student-v{n}", weight=weight) for n, weight in enumerate(weights, 1)]
    return RouteTable(student="demo", shares=tuple(shares), replicas=(Replica(url="http://127.0.0.1:1"),))


def test_sessions_are_shared_by_weight_and_stay_where_they_are_when_a_canary_grows() -> None:
    sessions = [f"user-{number}" for number in range(4000)]
    small = {name: table(0.95, 0.05).choose(name).version for name in sessions}
    large = {name: table(0.7, 0.3).choose(name).version for name in sessions}
    assert sum(version == 2 for version in small.values()) == pytest.approx(200, abs=50)
    assert sum(version == 2 for version in large.values()) == pytest.approx(1200, abs=110)
    assert all(large[name] == 2 for name, version in small.items() if version == 2)


def test_the_revision_rises_with_every_change_and_with_nothing_else(tmp_path: Path) -> None:
    file = RouteFile(tmp_path)
    assert file.read() is None
    assert [file.write(table(1)), file.write(table(1)), file.write(table(1, 1))] == [1, 1, 2]
    assert file.read() == table(1, 1).model_copy(update={"revision": 2})
    file.path.write_text("{")
    with pytest.raises(RoutesUnusable, match="not a JSON object"):
        file.read()
    assert file.write(table(1)) == 1


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "http://a/", "http://a?x=1", "ftp://a", "http://a b"])
def test_urls_that_would_lead_elsewhere_are_refused(url: str) -> None:
    with pytest.raises(ValidationError):
        Replica(url=url)


def test_a_name_stands_in_the_table_once() -> None:
    share = Share(version=1, model="a")
    with pytest.raises(ValidationError, match="twice"):
        RouteTable(student="demo", shares=(share, share), replicas=(Replica(url="http://a"),))


def test_a_model_is_drained_when_every_living_gateway_says_so(tmp_path: Path) -> None:
    assert drained(tmp_path, 2, "student-v1")
    report(tmp_path, Activity(gateway="a", at=100, revision=2))
    report(tmp_path, Activity(gateway="b", at=100, revision=1))
    assert not drained(tmp_path, 2, "student-v1", now=101)
    report(tmp_path, Activity(gateway="b", at=101, revision=2, in_flight={"student-v1": 1}))
    assert not drained(tmp_path, 2, "student-v1", now=101) and drained(tmp_path, 2, "student-v0", now=101)
    report(tmp_path, Activity(gateway="a", at=110, revision=2))
    assert drained(tmp_path, 2, "student-v1", now=102 + FRESH_S)  # b is gone


def test_a_gateway_of_another_version_keeps_models_where_they_are(tmp_path: Path) -> None:
    """Its file has a field that is not known here, which ended the deploy worker."""
    write_json(tmp_path / ACTIVITY / "newer.json", {"gateway": "newer", "at": time.time(), "mood": "good"})
    assert not drained(tmp_path, 2, "student-v1")
    assert drained(tmp_path, 2, "student-v1", now=time.time() + 2 * FRESH_S)  # it is gone


def test_the_files_of_gateways_that_were_killed_are_removed(tmp_path: Path) -> None:
    """They stayed for good."""
    for name in ("gone", "here", "own"):
        report(tmp_path, Activity(gateway=name, at=time.time()))
    folder = tmp_path / ACTIVITY
    (folder / ".gone.json.1.tmp").write_text("{")
    own = (folder / "own.json").stat().st_mtime
    for name, age_s in (("gone.json", REMOVED_S + 1), (".gone.json.1.tmp", REMOVED_S + 1), ("here.json", 60)):
        os.utime(folder / name, (own - age_s, own - age_s))
    sweep(tmp_path, "own")
    assert sorted(path.name for path in folder.iterdir()) == ["here.json", "own.json"]


def test_a_table_that_became_unreadable_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It was said at each request; users go on by the last good one."""
    file = RouteFile(tmp_path)
    file.write(table(1))
    gateway = Gateway(GatewaySettings(), RouteFile(tmp_path), cast(Desk, None))
    good = gateway.look()
    for _ in range(2):
        file.path.write_text("{")
        assert [gateway.look() for _ in range(3)] == [good] * 3
        file.write(table(1))
        gateway.look()
    assert [record.message.partition(":")[0] for record in caplog.records] == ["the last table is kept"] * 2
