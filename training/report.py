"""What people read of a judged round in the tracking server: the run's description (Markdown) and a page with
the gate's table and sample answers (HTML). A student's text is data: everything is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from training.evaluate import Correct
from training.verdict import GateVerdict, Row

NOTE_ROWS, NOTE_CHARACTERS = 12, 5000
COLUMNS = ("what", "kind", "items", "champion", "challenger", "gained", "lost", "p", "bound", "passed")
_PASSED = {True: "yes", False: "NO", None: "not tested"}
_STYLE = (
    "body{font:14px sans-serif;margin:2em}table{border-collapse:collapse;margin-bottom:2em}"
    "td,th{border:1px solid #ccc;padding:.3em .6em;text-align:left;vertical-align:top}"
    "td{white-space:pre-wrap;max-width:32em}"
)


@dataclass(frozen=True)
class Sample:
    """One held-out question with the answers of champion and challenger, and their grades."""

    skills: tuple[str, ...]
    question: str
    expected: str
    before: str
    after: str
    was: Correct
    now: Correct


@dataclass(frozen=True)
class RoundStory:
    """A judged round as it is told: why it was opened, what it made (name -> value), how it was judged."""

    round_id: str
    skills: tuple[str, ...]
    reasons: tuple[str, ...]
    made: tuple[tuple[str, str], ...]
    verdict: GateVerdict


def description(story: RoundStory) -> str:
    """The run's description, in Markdown: the targets', the whole's and every failed comparison."""
    told = [row for row in story.verdict.table if row.kind in ("targets", "whole") or row.passed is False]
    rows = [COLUMNS, ("---",) * len(COLUMNS), *(_cells(row) for row in told[:NOTE_ROWS])]
    lines = [
        headline(story),
        "",
        *(f"- {reason}" for reason in (*story.reasons, *story.verdict.reasons)),
        "",
        *(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows),
        "",
        *(f"- {name}: `{value}`" for name, value in story.made),
    ]
    return "\n".join(lines)[:NOTE_CHARACTERS]


def headline(story: RoundStory) -> str:
    """One line: the round, what it taught, and whether the gate opened.

    >>> headline(RoundStory("r001", ("add",), (), (), GateVerdict(promote=True, reasons=("gained",))))
    'Round r001 taught add; the gate is open.'
    """
    gate = "open" if story.verdict.promote else "closed"
    return f"Round {story.round_id} taught {', '.join(story.skills)}; the gate is {gate}."


def page(story: RoundStory, samples: Sequence[Sample]) -> str:
    """The page of a round: reasons, what it made, the gate's whole table, and answers side by side."""
    answers = [
        (_change(each), ", ".join(each.skills), each.question, each.expected, each.before, each.after)
        for each in samples
    ]
    return "".join(
        (
            f"<!doctype html><meta charset=utf-8><title>{escape(story.round_id)}</title>",
            f"<style>{_STYLE}</style><h1>{escape(headline(story))}</h1><ul>",
            *(f"<li>{escape(reason)}" for reason in (*story.reasons, *story.verdict.reasons)),
            "</ul>",
            _table(("", ""), story.made),
            "<h2>Gate</h2>",
            _table(COLUMNS, map(_cells, story.verdict.table)),
            "<h2>Sample answers to held-out questions</h2>",
            _table(("", "skills", "question", "expected", "champion", "challenger"), answers),
        )
    )


def choose_samples(samples: Iterable[Sample], of_each: int = 8) -> list[Sample]:
    """The first few of each kind: learned, lost, still wrong, right before and after."""
    kinds: dict[str, list[Sample]] = {"learned": [], "lost": [], "still wrong": [], "right": []}
    for sample in samples:
        kept = kinds.get(_change(sample), [])
        if len(kept) < of_each:
            kept.append(sample)
    return [sample for kept in kinds.values() for sample in kept]


def _change(sample: Sample) -> str:
    if sample.was is None or sample.now is None:
        return "undecided"
    if sample.was == sample.now:
        return "right" if sample.now == 1 else "still wrong"
    return "learned" if sample.now > sample.was else "lost"


def _cells(row: Row) -> tuple[str, ...]:
    against = "" if row.against == "champion" else f" (against {row.against})"
    return (
        row.name + against,
        row.kind,
        str(row.items),
        f"{row.champion:.1%}",
        f"{row.challenger:.1%}",
        f"{row.gained:g}",
        f"{row.lost:g}",
        f"{row.p_value:.2g}",
        f"{row.lower_bound:+.1%}",
        _PASSED[row.passed],
    )


def _table(names: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(name)}" for name in names)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}" for cell in row) for row in rows)
    return f"<table><tr>{head}{body}</table>"
