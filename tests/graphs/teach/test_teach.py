"""The agent's own step: look, decide, and open a round only where one was decided."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from agent.decision import Decision, SkillTarget
from agent.posterior import read
from agent.standing import Seen, Standing
from graphs.teach.graph import build_teach, teach

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SEEN = Seen(3, NOW, read({}, "s", 3, as_of_bucket=0), {}, (), 0)
WAIT = Decision(kind="wait", reasons=("nothing is missing",))
TARGET = SkillTarget(skill="gcd", weight=1.0, examples=2, strategy="select")
ROUND = Decision(kind="select", skills=(TARGET,), examples=2, steps=1, reasons=("gcd is missing",))


class Notes:
    """An agent that writes down what it is asked to do."""

    def __init__(self, seen: Seen | None, decision: Decision) -> None:
        self.done: list[str] = []
        self._seen, self._decision = seen, decision

    def look(self) -> Seen | None:
        self.done.append("look")
        return self._seen

    def decide(self, seen: Seen) -> Standing:
        self.done.append("decide")
        return Standing.of(seen, self._decision)

    def open(self, standing: Standing) -> None:
        self.done.append(f"open {standing.decision.kind}")


@pytest.mark.parametrize(
    ("seen", "decision", "done"),
    [
        (None, WAIT, ["look"]),
        (SEEN, WAIT, ["look", "decide"]),
        (SEEN, ROUND, ["look", "decide", "open select"]),
    ],
)
def test_a_round_is_opened_only_when_it_was_decided(
    seen: Seen | None, decision: Decision, done: list[str]
) -> None:
    notes, graph = Notes(seen, decision), build_teach()
    for _ in range(2):  # nothing is left from the step before
        notes.done.clear()
        standing = teach(graph, notes)
        assert notes.done == done
        assert (standing is None) == (seen is None)
        if standing is not None:
            assert (standing.version, standing.decision) == (3, decision)


def test_its_edges_are_those_of_the_picture() -> None:
    shown = build_teach().get_graph()
    assert {"standing", "decide", "open"} <= set(shown.nodes)
    edges = {(edge.source, edge.target) for edge in shown.edges}
    assert {("standing", "decide"), ("decide", "open"), ("decide", "__end__")} <= edges
