"""The tables and the plot of docs/learning.md, made of the finished cells: nothing is trained here.

    python -m benchmarks.learning_table [--cells FILE] [--json FILE]

Means over seeds with 95 % intervals (Student's t). Differences are paired by seed (two-sided t-test) and, for
each score, corrected by Holm for the number of comparisons. A method has as many seeds as cells; a difference
uses the seeds that both have, if there are three.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from matplotlib.figure import Figure
from scipy import stats

from benchmarks import forgetting, reinforce
from benchmarks.learning_cells import CELLS, DEFAULT_LR, SHIPPED, Cell, CellFile, Result
from benchmarks.learning_data import GIVEN
from benchmarks.learning_scores import chosen_lr, scores

DOCS = Path(__file__).parents[1] / "docs"
PAGE, PLOT = DOCS / "learning.md", DOCS / "learning.png"
BEGIN, END = "<!-- made by python -m benchmarks.learning_table: begin -->", "<!-- end -->"
OURS = "stat-syn"
SHOWN = ("drifted", "targets", "balanced", "original", "chains", "unseen pairs", "unseen order", "other rare")
TESTED = ("drifted", "targets", "balanced")
NAMES = {
    "vanilla": "original mixture (vanilla)",
    "traffic": "drifted traffic, unlimited, gold",
    "watched": "the watched answers, gold",
    "failed": "the failed of them, gold",
    "random": "random pool items",
    "question-skill": "by the question's skills",
    "shuffled": "shuffled profile",
    "mix": "half STAT-Sel, half random",
    "stat-sel": "STAT-Sel",
    "stat-syn": "STAT-Syn",
    "embed-sel": "nearest questions",
    "embed-syn": "new questions like the nearest",
    "augment": "augment",
    "hard": "hard only",
}


TITLES = {
    "narrow": "narrow drift (12 % on two missing skills)",
    "thin": "thin drift (5 % on two)",
    "mid": "mid drift (25 % on two)",
    "strong": "strong drift (60 % on two)",
    "narrow-2": "narrow drift to two other skills (12 %)",
    "six": "25 % on six missing skills",
}
KEPT = {
    "loop": "replay without a rule for chains",
    "none": "no replay",
    "half-pool-chains": "half of the replay the pool's known chains",
    "half-known-chains": "half of the replay fresh chains that the champion answers right",
    "half-right-traffic": "half of the replay what the champion answers right on traffic",
}
LONG = 320
LEAST = 3
"""Seeds that a tested difference needs."""
COMPARED = tuple(
    (arch, scenario, replay, steps)
    for replay in ("loop", "half-known-chains", "none")
    for arch in ("llama", "qwen")
    for scenario in TITLES
    for steps in (Cell.steps, LONG)
)


@dataclass(frozen=True)
class Row:
    """One line of a table: the seeds of one method, all else equal. `points`: score -> seed -> value."""

    name: str
    points: Mapping[str, Mapping[int, float]]
    results: Sequence[Result]

    def mean(self, score: str) -> float:
        """The mean over seeds."""
        return float(np.mean(list(self.points[score].values())))

    def half_width(self, score: str) -> float:
        """Half of the 95 % interval of the mean; infinite for one seed."""
        values = list(self.points[score].values())
        if len(values) < 2:
            return math.inf
        return float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))

    @property
    def seeds(self) -> int:
        """How many."""
        return len(self.results)


@dataclass(frozen=True)
class Difference:
    """One row less another, paired by seed, in points. `p` is corrected for the number of comparisons."""

    name: str
    score: str
    mean: float
    half_width: float
    p: float
    seeds: int


def row(name: str, cells: Iterable[tuple[Cell, Result]]) -> Row:
    """A row of cells that differ in their seed only."""
    points: dict[str, dict[int, float]] = {}
    results = []
    for cell, result in cells:
        results.append(result)
        for score, value in scores(result, cell.scenario).items():
            points.setdefault(score, {})[cell.seed] = value
    return Row(name, points, results)


def difference(ours: Row, other: Row, score: str) -> Difference | None:
    """`ours` less `other` over the seeds that both have; None for fewer than three, which tell no spread."""
    mine, theirs = ours.points[score], other.points[score]
    values = [mine[seed] - theirs[seed] for seed in sorted(mine.keys() & theirs.keys())]
    if len(values) < LEAST:
        return None
    spread = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    p = float(stats.ttest_1samp(values, 0.0).pvalue) if spread else 0.0
    width = float(stats.t.ppf(0.975, len(values) - 1)) * spread
    return Difference(other.name, score, float(np.mean(values)), width, p, len(values))


def holm(differences: Sequence[Difference]) -> list[Difference]:
    """The same differences with p corrected (Holm 1979)."""
    order = sorted(differences, key=lambda each: each.p)
    corrected: dict[int, float] = {}
    worst = 0.0
    for place, each in enumerate(order):
        worst = max(worst, min(1.0, each.p * (len(order) - place)))
        corrected[id(each)] = worst
    return [replace(each, p=corrected[id(each)]) for each in differences]


def main_rows(
    file: CellFile, scenario: str, arch: str, replay: str, steps: int = Cell.steps
) -> dict[str, Row]:
    """The comparison's rows by method, the shipped student first."""
    chosen: dict[str, list[tuple[Cell, Result]]] = {}
    for cell, result in file.items():
        best = Cell(cell.seed, cell.method, scenario, arch, replay, chosen_lr(file, cell.method, arch), steps)
        if cell in (best, best.base()):
            chosen.setdefault(cell.method, []).append((cell, result))
    return {name: row(NAMES.get(name, name), chosen[name]) for name in (SHIPPED, *NAMES) if name in chosen}


def _value(row: Row, score: str) -> str:
    width = row.half_width(score)
    return f"{row.mean(score):.1f}" + ("" if math.isinf(width) else f" ± {width:.1f}")


def table(rows: Mapping[str, Row]) -> str:
    """Scores, one line a method."""
    lines = [f"| | seeds | {' | '.join(SHOWN)} |", "|---|---|" + "---|" * len(SHOWN)]
    for each in rows.values():
        lines.append(f"| {each.name} | {each.seeds} | {' | '.join(_value(each, score) for score in SHOWN)} |")
    return "\n".join(lines)


def costs(rows: Mapping[str, Row]) -> str:
    """What each method took: both axes of cost, distinct examples, and flips against the shipped student."""
    head = (
        "| | tokens trained | new examples | teacher calls | teacher tokens | became right | became wrong |"
    )
    lines = [head, "|---|---|---|---|---|---|---|"]
    for name, each in rows.items():
        if name != SHIPPED:
            asked = 0 if name in GIVEN else 1  # gold answers need no diagnoses
            spent = [(r.tokens, r.new, asked * r.calls, asked * r.teacher_tokens) for r in each.results]
            figures = np.mean(spent, axis=0)
            flips = [
                np.mean([sum(getattr(result, field).values()) for result in each.results])
                for field in ("gained", "lost")
            ]
            lines.append(f"| {each.name} | {' | '.join(f'{value:,.0f}' for value in (*figures, *flips))} |")
    return "\n".join(lines)


def comparisons(rows: Mapping[str, Row]) -> list[Difference]:
    """STAT-Syn less every other method, corrected within each score."""
    if OURS not in rows:
        return []
    others = [each for name, each in rows.items() if name not in (OURS, SHIPPED)]
    found = []
    for score in TESTED:
        each = [difference(rows[OURS], other, score) for other in others]
        found += holm([one for one in each if one is not None])
    return found


def _p(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p {p:.3f}"


def tests(rows: Mapping[str, Row]) -> str:
    """The differences as a table; nothing where there are none."""
    lines = ["| STAT-Syn less | seeds | " + " | ".join(TESTED) + " |", "|---|---|" + "---|" * len(TESTED)]
    by_name: dict[str, dict[str, Difference]] = {}
    for one in comparisons(rows):
        by_name.setdefault(one.name, {})[one.score] = one
    for name, scored in by_name.items():
        told = [f"{one.mean:+.1f} ± {one.half_width:.1f} ({_p(one.p)})" for one in scored.values()]
        lines.append(f"| {name} | {next(iter(scored.values())).seeds} | {' | '.join(told)} |")
    return "\n".join(lines) + "\n" if by_name else ""


def kept(file: CellFile, scenario: str, arch: str) -> dict[str, Row]:
    """The rounds of STAT-Syn that differ in what keeps compositions."""
    chosen: dict[str, list[tuple[Cell, Result]]] = {}
    for cell, result in file.items():
        if (cell.split, cell.scenario, cell.arch, cell.items) != ("exam", scenario, arch, 200):
            continue
        if cell.method == SHIPPED:
            chosen.setdefault("the shipped student", []).append((cell, result))
        elif cell.method == OURS and cell.replay != "none" and cell.steps == Cell.steps:
            name = KEPT[cell.replay]
            name += f", {cell.blend:.0%} of the change" if cell.blend != 1 else ""
            name += f", lr {cell.lr:g}" if cell.lr != DEFAULT_LR else ""
            chosen.setdefault(name, []).append((cell, result))
    rows = {name: row(name, cells) for name, cells in chosen.items()}
    return rows if len(rows) > 2 else {}


def searched(file: CellFile) -> str:
    """The search of the learning rates on the validation split."""
    tried: dict[str, dict[float, float]] = {}
    for cell, result in file.items():
        if (cell.split, cell.items) == ("gate", Cell.items) and cell.method != SHIPPED:
            name = f"{NAMES[cell.method]} ({cell.arch})"
            tried.setdefault(name, {})[cell.lr] = scores(result, cell.scenario)["drifted"]
    rates = sorted({lr for found in tried.values() for lr in found})
    lines = ["| lr | " + " | ".join(f"{lr:g}" for lr in rates) + " |", "|---|" + "---|" * len(rates)]
    for name, found in tried.items():
        best = max(found.values())
        told = [f"{found[lr]:.1f}" if lr in found else "" for lr in rates]
        told[rates.index(max(found, key=lambda lr: found[lr]))] = f"**{best:.1f}**"
        lines.append(f"| {name} | {' | '.join(told)} |")
    return "\n".join(lines)


def sections(file: CellFile) -> str:
    """All that is generated of the page."""
    parts = []
    for arch, scenario, replay, steps in COMPARED:
        rows = main_rows(file, scenario, arch, replay, steps)
        if len(rows) > 2:
            title = f"{TITLES[scenario]}, {arch.capitalize()}, {KEPT[replay]}"
            title += f", {steps} steps" if steps != Cell.steps else ""
            parts += [f"### {title}", table(rows), "", tests(rows), costs(rows), ""]
    for scenario in TITLES:
        rows = kept(file, scenario, "llama")
        if rows:
            parts += [f"### What keeps compositions: STAT-Syn, {TITLES[scenario]}", table(rows), ""]
    for path, made in ((forgetting.CELLS, forgetting.tables), (reinforce.CELLS, reinforce.table)):
        if runs := forgetting.finished(path):
            parts.append(made(runs))
    parts += ["### Learning rates, chosen on validation items (drifted traffic, one seed)", searched(file)]
    return "\n".join(parts)


def page(text: str, generated: str) -> str:
    """The page with its generated part replaced."""
    head, _, rest = text.partition(BEGIN)
    return f"{head}{BEGIN}\n{generated}\n{END}{rest.partition(END)[2]}"


def plot(rows: Mapping[str, Row], path: Path) -> None:
    """Drifted traffic and target skills by method, with intervals."""
    figure = Figure(figsize=(9, 0.35 * len(rows) + 1.2), layout="constrained")
    for axes, score in zip(figure.subplots(1, 3, sharey=True), ("drifted", "targets", "chains"), strict=True):
        for place, each in enumerate(rows.values()):
            width = each.half_width(score)
            axes.errorbar(
                each.mean(score), place, xerr=0 if math.isinf(width) else width, fmt="o", color="C0"
            )
        axes.set_yticks(range(len(rows)), [each.name for each in rows.values()])
        axes.set_xlabel(f"{score}, %")
        axes.grid(axis="x", alpha=0.3)
        axes.invert_yaxis()
    figure.savefig(path, dpi=110, metadata={"Software": None})


def main(cells: Annotated[Path, typer.Option(help="The file of finished cells.")] = CELLS) -> None:
    """Write tables and plot into docs/."""
    file = CellFile(cells)
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), sections(file)), encoding="utf-8")
    plot(main_rows(file, *COMPARED[0][1::-1], COMPARED[0][2]), PLOT)


if __name__ == "__main__":
    typer.run(main)
