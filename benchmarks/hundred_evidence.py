"""What a run of `benchmarks.hundred` has left behind, read once its workers have stopped."""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from mlflow import MlflowClient

from agent.posterior import Profile, ProfileView
from benchmarks.hundred_world import RatedStudent
from loop.config import Config
from loop.workers.record import LoopRound, open_rounds
from streams.codec import Codec
from streams.events import Alert, Diagnosed
from streams.log import EventLog
from streams.state.store import StateStore

if TYPE_CHECKING:
    from benchmarks.hundred import Traffic
    from benchmarks.hundred_crew import Crew
    from benchmarks.hundred_faults import Faults


class Books(Protocol):
    """What the checks of rounds and money read."""

    @property
    def config(self) -> Config: ...
    @property
    def store(self) -> StateStore: ...
    @property
    def rounds(self) -> Sequence[LoopRound]: ...
    @property
    def runs(self) -> Mapping[str, int]: ...
    @property
    def versions(self) -> Mapping[str, int]: ...


@dataclass(frozen=True)
class Evidence:
    """What a run has left behind."""

    config: Config
    crew: Crew
    traffic: Traffic
    faults: Faults
    store: StateStore
    rounds: Sequence[LoopRound]
    alerts: Sequence[Alert]
    diagnoses: int
    letters: int
    rebuilt: str
    runs: Mapping[str, int]
    versions: Mapping[str, int]
    champion: int

    @classmethod
    def gather(
        cls,
        config: Config,
        crew: Crew,
        store: StateStore,
        log: EventLog,
        traffic: Traffic,
        faults: Faults,
        rebuilt: subprocess.CompletedProcess[str],
    ) -> Evidence:
        """Read everything, once the workers have stopped."""
        name, codec = config.student.name, Codec()
        events = [codec.decode(record) for topic in ("alerts", "diagnoses") for record in log.read(topic)]
        uri = f"sqlite:///{crew.root / 'mlflow.db'}"
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        experiment = client.get_experiment_by_name(name)
        runs = client.search_runs([experiment.experiment_id], max_results=1000)
        versions = client.search_model_versions(f"name = '{name}'")
        champion = client.get_model_version_by_alias(name, "champion")
        return cls(
            config=config,
            crew=crew,
            traffic=traffic,
            faults=faults,
            store=store,
            rounds=open_rounds(store).list(name),
            alerts=[event for event in events if isinstance(event, Alert)],
            diagnoses=len({event.event_id for event in events if isinstance(event, Diagnosed)}),
            letters=sum(log.end_offsets("student-outputs.dlq").values()),
            rebuilt=rebuilt.stdout.strip().splitlines()[-1],
            runs=Counter(run.data.tags["round_id"] for run in runs),
            versions=Counter(version.tags["round_id"] for version in versions),
            champion=int(champion.version),
        )

    def ended(self, state: str) -> list[LoopRound]:
        """The rounds that ended so."""
        return [round_ for round_ in self.rounds if round_.state == state]

    def truth(self, version: int, skill: str) -> float:
        """The mean true miss rate of a version's answers that needed a skill."""
        rates = self.traffic.truth.get((version, skill), [])
        return sum(rates) / len(rates) if rates else 0.0

    @cached_property
    def students(self) -> dict[int, RatedStudent]:
        """The champions in the order in which they were served, by version."""
        root, served = self.crew.root, {1: RatedStudent.read(self.crew.root / "base")}
        for round_ in self.ended("promoted"):
            version = round_.record.need_judged().version
            served[version] = RatedStudent.read(
                root / "rounds" / round_.round_id / round_.record.need_trained().directory / "adapter"
            )
        return served

    def profiles(self) -> Iterator[Profile]:
        """The profile of each served version after its last answer, as the loop reads it."""
        student, before = self.config.student.name, None
        for version in self.students:
            versions = [known for known in (before, version) if known is not None]
            rows = {key: c for known in versions for key, c in self.store.buckets(student, known).items()}
            buckets = [key.bucket for key in rows if key.version == version]
            if buckets:
                yield ProfileView(rows).read(student, version, max(buckets), self.config.profile, before)
            before = version

    def table(self) -> list[dict[str, Any]]:
        """The rounds, one line each."""
        return [
            {
                "round": round_.round_id,
                "kind": round_.record.decision.kind,
                "skills": list(round_.record.skills),
                "state": round_.state,
                "opened_at": round_.record.opened.answers,
                "steps": round_.record.decision.steps,
                "examples": round_.record.decision.examples,
                "why": _why(round_),
            }
            for round_ in self.rounds
        ]


def _why(round_: LoopRound) -> str:
    record = round_.record
    if record.ended is not None and record.ended.error:
        return record.ended.error
    return record.judged.verdict.reasons[0] if record.judged else ""
