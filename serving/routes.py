"""The route table: which versions of a student answer, with what share, on which replicas.

One JSON file in a folder that deployer and gateways share. The deployer writes it as a whole; every gateway
looks at it before each request, so the next request after a write goes by the new table, and a request that
is under way ends by the old one. Each gateway writes beside it what it has under way. The deployer's order:

1. load and prove the new model on the replicas;
2. `RouteFile.write` (it returns the revision);
3. wait until `drained(folder, revision, old_model)`;
4. unload the old model.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, ValidationError, model_validator

from agent.chance import rank
from agent.settings import Settings
from serving.engine import EngineError
from streams.codec import first_error
from streams.events import Name, Version
from streams.files import read_json, write_json

ROUTES = "routes.json"
RESTING = "resting.json"
ACTIVITY = "gateways"
FRESH_S = 10.0
"""An activity file older than this is one of a gateway that is gone."""
REMOVED_S = 600.0
"""Such a file is removed after this time: a gateway that was killed leaves its own."""

Url = Annotated[str, Field(pattern=r"^https?://[^\s/?#]+(/[^\s?#]*[^\s/?#])?$")]


class RoutesUnusable(EngineError):
    """The route table cannot be read; the message names the file."""


class Replica(Settings):
    """A server that answers for the student; `url` without `/v1` and without a slash at its end."""

    url: Url


class Share(Settings):
    """A version that answers: `model` is what a replica is asked for, `weight` its part of the sessions."""

    version: Version
    model: Name
    weight: float = Field(default=1.0, gt=0)


class RouteTable(Settings):
    """Where the stable name `student` leads. The first share is the champion's, the others are canaries.

    Every replica must serve every model of the table: one that has lost an adapter is left out by the
    deployer (the gateway passes it over meanwhile).

    >>> table = RouteTable(
    ...     student="demo",
    ...     shares=(Share(version=3, model="student-v3"),),
    ...     replicas=(Replica(url="http://127.0.0.1:8000"),),
    ... )
    >>> table.choose("anybody").model
    'student-v3'
    """

    student: Name
    shares: tuple[Share, ...] = Field(min_length=1)
    replicas: tuple[Replica, ...] = Field(min_length=1)
    revision: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _no_name_twice(self) -> Self:
        for what, names in (
            ("model", [share.model for share in self.shares]),
            ("version", [share.version for share in self.shares]),
            ("replica", [replica.url for replica in self.replicas]),
        ):
            if len(set(names)) < len(names):
                raise ValueError(f"a {what} stands in the table twice: {names}")
        return self

    def choose(self, session: str) -> Share:
        """The share that answers a session: always the same while the canaries are. A canary whose weight
        grows keeps its sessions; another canary draws others."""
        canaries = self.shares[1:]
        if not canaries:
            return self.shares[0]
        total = sum(share.weight for share in self.shares)
        place = rank(0, "canary", self.student, canaries[0].model, session) / 2**64 * total
        for share in canaries:
            place -= share.weight
            if place < 0:
                return share
        return self.shares[0]


_Mark = tuple[int, int, int]


def _mark(path: Path) -> _Mark | None:
    """What changes when a file is replaced; None where there is none. Raises `RoutesUnusable`."""
    try:
        stat = os.stat(path)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise RoutesUnusable(f"cannot read {path}: {exc}") from exc
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


def rest(folder: Path, urls: Sequence[str]) -> None:
    """From now on no new request goes to these replicas as long as there are others; none: all are back."""
    if urls:
        write_json(folder / RESTING, {"urls": list(urls)})
    else:
        (folder / RESTING).unlink(missing_ok=True)


def resting(folder: Path) -> tuple[str, ...]:
    """The replicas that rest."""
    urls = (read_json(folder / RESTING) or {}).get("urls")
    return tuple(url for url in urls if isinstance(url, str)) if isinstance(urls, list) else ()


class RouteFile:
    """The table's file in `folder`. One process writes (the deployer), any number read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / ROUTES
        self._seen: tuple[_Mark | None, _Mark | None] | None = None
        self._table: RouteTable | None = None

    def write(self, table: RouteTable) -> int:
        """Replace the table; returns its revision, one above that of the table before. An equal table is
        left as it is, so a reconciler may write what it wants to be true as often as it looks."""
        try:
            before = self._load()
        except RoutesUnusable:
            before = None  # a damaged table is replaced
        if before is not None and before == table.model_copy(update={"revision": before.revision}):
            return before.revision
        revision = 1 + (before.revision if before else 0)
        write_json(self.path, table.model_copy(update={"revision": revision}).model_dump(mode="json"))
        return revision

    def read(self) -> RouteTable | None:
        """The table as it is now; None when nothing was ever deployed. Costs two `stat` where it is
        unchanged.

        Raises `RoutesUnusable`.
        """
        mark = (_mark(self.path), _mark(self.folder / RESTING))
        if mark[0] is None:
            return None
        if mark != self._seen:
            self._table, self._seen = self._awake(self._load()), mark
        return self._table

    def _awake(self, table: RouteTable | None) -> RouteTable | None:
        """Without the replicas that rest, unless all do."""
        if table is None:
            return None
        asleep = resting(self.folder)
        awake = tuple(replica for replica in table.replicas if replica.url not in asleep)
        return table.model_copy(update={"replicas": awake}) if awake else table

    def _load(self) -> RouteTable | None:
        if not self.path.exists():
            return None
        body = read_json(self.path)
        if body is None:
            raise RoutesUnusable(f"{self.path} is not a JSON object; deploy again, which writes it anew")
        try:
            return RouteTable.model_validate(body)
        except ValidationError as exc:
            raise RoutesUnusable(f"{self.path}: {first_error(exc)}") from exc


class Activity(Settings):
    """What a gateway says of itself: the table's revision that it goes by, requests under way by model, and
    since its start the requests, failures and slow answers of each model and what became of the answers it
    captures."""

    gateway: Name
    at: float
    revision: int = 0
    in_flight: dict[str, int] = Field(default_factory=dict)
    requests: dict[str, int] = Field(default_factory=dict)
    failures: dict[str, int] = Field(default_factory=dict)
    slow: dict[str, int] = Field(default_factory=dict)
    captured: dict[str, int] = Field(default_factory=dict)


def report(folder: Path, activity: Activity) -> None:
    """Write a gateway's activity beside the table."""
    write_json(folder / ACTIVITY / f"{activity.gateway}.json", activity.model_dump())


def sweep(folder: Path, gateway: str) -> None:
    """Remove what killed gateways left, `REMOVED_S` before this one last reported: both times are the file
    system's, whatever the hosts' clocks say."""
    own = folder / ACTIVITY / f"{gateway}.json"
    newest = own.stat().st_mtime
    for path in own.parent.iterdir():
        with suppress(FileNotFoundError):
            if newest - path.stat().st_mtime > REMOVED_S:
                path.unlink()


def activities(folder: Path, now: float | None = None) -> Iterator[Activity]:
    """What the gateways that are alive have said. One that cannot be understood (another version's) goes by
    no table that is known here, so nothing is taken off while it lives."""
    now = time.time() if now is None else now
    for path in sorted((folder / ACTIVITY).glob("*.json")):
        body = read_json(path)
        try:
            activity = Activity.model_validate(body)
        except ValidationError:
            with suppress(FileNotFoundError):
                if body is not None and now - path.stat().st_mtime < FRESH_S:
                    yield Activity(gateway=path.stem, at=now)
        else:
            if now - activity.at < FRESH_S:
                yield activity


def drained(folder: Path, revision: int, model: str, now: float | None = None) -> bool:
    """Whether every living gateway goes by table `revision` or a later one and has nothing under way for
    `model`. True where no gateway lives."""
    return all(
        activity.revision >= revision and not activity.in_flight.get(model)
        for activity in activities(folder, now)
    )
