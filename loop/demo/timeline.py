"""The demo's picture: accuracy per skill over the stream, with shifts, alarms, rounds and promotions."""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from agent.beta import jeffreys
from agent.profile import ALL
from loop.demo.stream import START, schedule
from loop.workers.services import Services
from streams.codec import Codec
from streams.events import Alert
from streams.log import EventLog

SMOOTH = 4
LEAST = 10


def draw_timeline(services: Services, log: EventLog, highlighted: list[str], path: Path) -> None:
    """Write the PNG. `highlighted` skills are drawn in colour, the others in grey; each point is `SMOOTH`
    buckets wide and has at least `LEAST` answers, with its 90 % interval (Jeffreys)."""
    config, demo = services.config, services.config.demo
    figure, axes = plt.subplots(figsize=(12, 6), layout="constrained")
    for skill, points in sorted(_curves(services).items()):
        places, accuracy, low, high = zip(*points, strict=True)
        bold = skill == ALL or skill in highlighted
        label = "all answers" if skill == ALL else skill if bold else None
        colour: dict[str, str] = {"color": "black"} if skill == ALL else {} if bold else {"color": "0.85"}
        (line,) = axes.plot(
            places,
            accuracy,
            label=label,
            linewidth=2.5 if skill == ALL else 1.6 if bold else 0.8,
            **colour,
        )
        if bold:
            axes.fill_between(places, low, high, color=line.get_color(), alpha=0.12, linewidth=0)
    for phase in schedule(config)[1:]:
        axes.axvline(phase.start, color="0.4", linestyle=":")
        axes.text(phase.start, 1.03, phase.name, ha="center", fontsize=9)
    for at, skill in _alarms(services, log):
        axes.plot([at], [0.0], marker="^", color="darkorange")
        axes.text(at, 0.02, skill, rotation=90, fontsize=7, color="darkorange", ha="center", va="bottom")
    for at, label, promoted in _rounds(services):
        axes.axvline(at, color="green" if promoted else "red", alpha=0.7)
        axes.text(at, 0.5, label, rotation=90, fontsize=8, va="center", ha="right")
    axes.set(xlabel="question", ylabel="accuracy (diagnosed)", ylim=(-0.02, 1.08), xlim=(0, demo.questions))
    axes.legend(loc="lower left", fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _curves(services: Services) -> dict[str, list[tuple[float, float, float, float]]]:
    """skill -> (question, accuracy, its bounds) from the store's buckets, over groups of `SMOOTH` buckets."""
    demo, monitor = services.config.demo, services.config.monitor
    sums: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))
    for (_, _, skill, bucket), (needed, missing) in services.store.buckets(services.student).items():
        cell = sums[skill][bucket // SMOOTH]
        cell[0] += needed
        cell[1] += missing
    start = START.timestamp()
    width = monitor.bucket_s * SMOOTH

    def question(group: int) -> float:
        return ((group + 0.5) * width - start) / demo.seconds_between

    def point(group: int, needed: int, missing: int) -> tuple[float, float, float, float]:
        right = needed - missing
        return question(group), right / needed, *jeffreys(right, missing)

    curves = {
        skill: [point(group, *cell) for group, cell in sorted(cells.items()) if cell[0] >= LEAST]
        for skill, cells in sums.items()
    }
    return {skill: points for skill, points in curves.items() if points}


def _index(moment: datetime, services: Services) -> float:
    return (moment - START).total_seconds() / services.config.demo.seconds_between


def _alarms(services: Services, log: EventLog) -> list[tuple[float, str]]:
    codec = Codec()
    events = [codec.decode(record) for record in log.read(Alert.TOPIC)]
    return [
        (_index(event.occurred_at, services), event.skill) for event in events if isinstance(event, Alert)
    ]


def _rounds(services: Services) -> list[tuple[float, str, bool]]:
    rows = []
    for round_ in services.rounds.list(services.student):
        record = round_.record
        label = f"{record.decision.kind} {'+'.join(record.skills)}: {round_.state}"
        rows.append((_index(record.opened.at, services), label, round_.state == "promoted"))
    return rows
