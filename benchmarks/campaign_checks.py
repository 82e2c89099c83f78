"""What must hold after a seed of `benchmarks.campaign`, each as a check with its figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow import MlflowClient

from benchmarks.campaign_faults import MARK, TOPIC, Faults
from benchmarks.hundred_checks import Check, check, money_within_caps, one_run_and_version
from benchmarks.hundred_world import RatedStudent
from loop.config import Config
from loop.doors import open_registry
from loop.workers.record import LoopRound, open_rounds
from streams import dead_letters
from streams.codec import Codec
from streams.dead_letters import DeadLetter
from streams.events import Deployed, Diagnosed, EventKey
from streams.log import EventLog, Record
from streams.state.positions import Gap, TopicPositions
from streams.state.store import StateStore
from streams.topics import MONITOR_GROUP

if TYPE_CHECKING:
    from benchmarks.campaign import Users

UNREADABLE = "unreadable"


@dataclass(frozen=True)
class Evidence:
    """What a seed has left behind."""

    config: Config
    root: Path
    store: StateStore
    users: Users
    faults: Faults
    settled: bool
    rebuilt: str
    rounds: Sequence[LoopRound]
    runs: Mapping[str, int]
    versions: Mapping[str, int]
    diagnosed: Counter[EventKey]
    deployed: Sequence[Deployed]
    letters: Sequence[DeadLetter]
    gaps: Sequence[Gap]

    @classmethod
    def gather(
        cls, config: Config, store: StateStore, log: EventLog, users: Users, faults: Faults, settled: bool
    ) -> Evidence:
        """Read everything, once the workers have stopped."""
        root, codec, name = faults.crew.root, Codec(), config.student.name
        derived = [codec.decode(record) for record in log.read(Diagnosed.TOPIC)]
        uri = f"sqlite:///{root / 'mlflow.db'}"
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        runs = client.search_runs([client.get_experiment_by_name(name).experiment_id])
        return cls(
            config=config,
            root=root,
            store=store,
            users=users,
            faults=faults,
            settled=settled,
            rebuilt=faults.crew.command("profile", "rebuild").stdout.strip(),
            rounds=open_rounds(store).list(name),
            runs=Counter(run.data.tags["round_id"] for run in runs),
            versions=Counter(
                version.tags["round_id"] for version in client.search_model_versions(f"name = '{name}'")
            ),
            diagnosed=Counter((e.student, e.causation_id) for e in derived if isinstance(e, Diagnosed)),
            deployed=[e for e in map(codec.decode, log.read(Deployed.TOPIC)) if isinstance(e, Deployed)],
            letters=list(dead_letters.read_all(log, TOPIC)),
            gaps=TopicPositions(store).gaps(MONITOR_GROUP),
        )

    @property
    def parked(self) -> set[EventKey]:
        """The answers that are dead letters."""
        headers = [dict(letter.position.headers) for letter in self.letters]
        return {
            (head["ce_source"].decode().rpartition("/")[2], head["ce_id"].decode())
            for head in headers
            if "ce_source" in head and "ce_id" in head
        }

    def in_gaps(self, lost: set[EventKey]) -> set[EventKey]:
        """Those of some answers that were only in the topic that is gone, behind what was read of it. A
        monitor that had read nothing of a partition may begin with the new topic's before anybody notices:
        then the gap's offset is of the new one."""
        gaps = {gap.partition: gap.had for gap in self.gaps[:8]}
        read = dict.fromkeys(gaps, 0)
        for key in self.users.gone.keys() & self.diagnosed.keys():
            for record in self.users.gone[key]:
                read[record.partition] = max(read.get(record.partition, 0), record.offset + 1)

        def unread(record: Record) -> bool:
            where = record.partition
            return where in gaps and record.offset >= min(gaps[where], read[where])

        return {key for key in lost & self.users.gone.keys() if all(map(unread, self.users.gone[key]))}


def everything_settled(seen: Evidence) -> Check:
    """All is read, the outbox is empty, no round is under way."""
    states = Counter(round_.state for round_ in seen.rounds)
    return check("the loop came to rest", seen.settled, rounds=dict(states), rebuilt=seen.rebuilt)


def each_answer_once(seen: Evidence) -> Check:
    """Every answer is in the profile, in the dlq or in a counted gap; none is counted twice."""
    users = seen.users
    lost = users.answers - seen.diagnosed.keys() - seen.parked
    gone = seen.in_gaps(lost)
    twice = [key for key, count in seen.diagnosed.items() if count > 1]
    counted = sum(seen.store.answers(student) for student in users.students)
    strange = seen.diagnosed.keys() - users.answers
    passed = (
        lost == gone
        and not twice
        and not strange
        and counted == len(seen.diagnosed)
        and seen.rebuilt.endswith("identical")
    )
    return check(
        "every answer once: in the profile, in the dlq or in a counted gap",
        passed,
        sent=len(users.answers),
        counted=counted,
        parked=len(seen.parked & users.answers - seen.diagnosed.keys()),
        in_gaps=len(gone),
        lost=sorted(lost - gone)[:5],
        twice=twice[:5],
        strange=sorted(strange)[:5],
    )


def poison_is_parked(seen: Evidence) -> Check:
    """Every poison record is a dead letter, and as often as it was asked for again, at most."""
    names = [dict(letter.position.headers).get(MARK.lower(), b"").decode() for letter in seen.letters]
    letters = Counter(name for name in names if name)
    missing = {name for name in seen.users.poison if name not in letters} - seen.users.poison_gone
    most = 1 + seen.faults.letters_asked + seen.users.sent_again
    bred = {name: count for name, count in letters.items() if count > most}
    bombs = len({x.letter_id for x in seen.letters if x.reason == UNREADABLE})
    passed = not missing and not bred and (bombs >= seen.faults.bombs or bool(seen.gaps))
    return check(
        "each poison record is a dead letter, and does not breed",
        passed,
        poison=len(seen.users.poison),
        letters=letters.total(),
        missing=sorted(missing),
        bred=bred,
        bombs=bombs,
        of=seen.faults.bombs,
    )


def champion_is_proved(seen: Evidence) -> Check:
    """The registry's champion can be fetched by its hash, is what is served, and was announced once."""
    registry = open_registry(seen.config, seen.root)
    champion = registry.champion()
    route = open_rounds(seen.store).route(seen.config.student.name)
    folder = registry.download(champion.version, seen.root / "fetched")
    rates = RatedStudent.read(folder or seen.root / "base").rates
    events = Counter(event.version for event in seen.deployed)
    promoted = [round_.record.need_judged().version for round_ in seen.rounds if round_.state == "promoted"]
    passed = (
        route is not None
        and route[0] == champion.version == max(promoted, default=1)
        and len(rates) > 0
        and all(events[version] == 1 for version in promoted)
    )
    return check(
        "the champion loads, is proved and served",
        passed,
        champion=champion.version,
        route=route,
        promoted=promoted,
        announced=dict(events),
    )


def nobody_died_in_silence(seen: Evidence) -> Check:
    """No worker ended by itself without saying what to do."""
    deaths = seen.faults.crew.deaths
    silent = [f"{death.name} ({death.code}): {death.said[-600:]}" for death in deaths if not death.remedy]
    return check(
        "no worker dead without a message that names the remedy",
        not silent,
        ended=[f"{death.name}: {death.remedy}" for death in deaths if death.remedy],
        silent=silent,
    )


def no_round_failed(seen: Evidence) -> Check:
    """A round may be rejected; it fails only for what the round itself is at fault for."""
    failed = {
        round_.round_id: round_.record.ended.error if round_.record.ended else ""
        for round_ in seen.rounds
        if round_.state == "failed"
    }
    return check("no round failed for an outage", not failed, failed=failed)


CHECKS = (
    everything_settled,
    each_answer_once,
    poison_is_parked,
    one_run_and_version,
    champion_is_proved,
    nobody_died_in_silence,
    no_round_failed,
    money_within_caps,
)
