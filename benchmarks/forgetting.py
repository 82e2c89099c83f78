"""Does a student forget over five rounds of drift, and what keeps it from forgetting?

    python -m benchmarks.forgetting [--arms loop,no-replay] [--seeds 0,1,2] [--minutes 60]

The traffic drifts five times, to other skills each time (`SCHEDULE`: the nine that the shipped student
lacks). Each round trains the product's trainer for 160 steps of 32 examples on 1,000 fresh solved questions
of its skills and on what is replayed, drawn by the product from what the champion of that round answers right
and from the reservoir of earlier rounds' targets. An arm (`ARMS`) is one way to make a round of the one
before. Every round's champion sits the exam. There is no gate: each round is promoted, whatever it forgets.

A finished (arm, seed) is a line of `benchmarks/forgetting_cells.jsonl` and is not run again; one that was
broken off resumes with its first unfinished round. `python -m benchmarks.learning_table` makes the tables.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal
from unittest.mock import patch

import numpy as np
import torch
import typer
from peft import PeftModel
from rich.console import Console
from rich.progress import track
from scipy import stats
from transformers import AutoModelForCausalLM, AutoTokenizer

from agent.catalog import SkillMap
from agent.chance import ordered
from agent.items import Example, Frozen, PoolItem
from agent.replay import ReplaySettings, Reservoir, keep, plan_replay
from benchmarks.learning_cells import DEFAULT_LR, Result
from benchmarks.learning_data import BATCH, DEMO, passes, replay_example
from benchmarks.learning_scores import Answerer, Marked, exam, marks, scores
from loop.tasks.student import student_dir
from loop.tasks.world.checker import grade
from loop.tasks.world.world import COMMON, SKILLS, chains, pool
from streams.files import read_json, read_rows, write_json, write_rows
from training.settings import SftSettings
from training.sft import SftTrainer
from training.steps import MICRO_BATCHES, StepTrainer
from training.steps import TAUGHT as TAUGHT_TOKENS
from training.trainer import TrainingJob

CELLS = Path(__file__).with_name("forgetting_cells.jsonl")
WORK = Path("runs/forgetting")
SCHEDULE = (
    ("left", "equation"),
    ("average", "fraction"),
    ("perimeter", "profit"),
    ("bill", "total"),
    ("mod",),
)
TAUGHT = tuple(skill for round_skills in SCHEDULE for skill in round_skills)
STEPS = 160
NEW = 1000
POOL = 300
CANDIDATES = 1000
ITEMS = 200
SCENARIO = "narrow"  # of the exam, whose drifted chains are not looked at
REPLAY = DEMO.curate.replay
BLEND = DEMO.train.sft.blend


@dataclass(frozen=True)
class Arm:
    """How a round starts (`continue` the champion's adapter, `merge` it into the weights and begin a fresh
    one, `rebase`: fresh from the base on all rounds' data), what it replays, whether earlier rounds' examples
    are among it, how many chains of the original mixture the pool has to replay, how much of its change is
    kept, and the weight of the divergence from the champion on what is replayed."""

    title: str
    start: Literal["continue", "merge", "rebase"] = "continue"
    replay: ReplaySettings = REPLAY
    earlier: bool = True
    chains: int = 0
    blend: float = BLEND
    kl: float = 0.0


ARMS: Mapping[str, Arm] = {
    "loop": Arm("continue, replay, 80 % of the change"),
    "chains": Arm("the same, 400 chains in the pool (the demo's)", chains=400),
    "whole": Arm("continue, replay, all of the change", blend=1.0),
    "half": Arm("continue, replay, half of the change", blend=0.5),
    "no-earlier": Arm("continue, replay without earlier rounds' examples", earlier=False),
    "no-replay": Arm("continue, no replay", replay=REPLAY.model_copy(update={"share": 0.0})),
    "kl": Arm("continue, replay with KL to the champion, all of the change", blend=1.0, kl=1.0),
    "merge": Arm("merge, then a fresh adapter, replay", start="merge"),
    "rebase": Arm("fresh from the base on all rounds' data", start="rebase", blend=1.0),
}


DEMO_ARM = "chains"
Live = Callable[[str, int], Iterable[Result]]
"""The exams of one (arm, seed), made as they are asked for."""


class Rounds(Frozen):
    """What one (arm, seed) came to: the exam of the shipped student and after each round."""

    arm: str
    seed: int
    results: tuple[Result, ...]


def finished(path: Path = CELLS) -> list[Rounds]:
    """The finished runs of a file."""
    return read_rows(path, Rounds) if path.is_file() else []


@dataclass
class Life:
    """One student through all rounds of an arm. `base` is what the current adapter belongs to."""

    arm: Arm
    seed: int
    folder: Path
    base: Path
    champion: Path | None = None

    def results(self) -> Iterable[Result]:
        """The exam of the shipped student, then after each round; trains as they are asked for."""
        before = self.right()
        yield self.result(before, before)
        reservoir: Reservoir = {}
        taught: list[Example] = []
        for number, targets in enumerate(SCHEDULE, start=1):
            new = self.new(number, targets)
            taught += new
            old = self.replayed(number, targets, new, reservoir, {each.example_id: each for each in taught})
            reservoir = keep(reservoir, _by_target(new, targets), self.seed, self.arm.replay)
            tokens = self._train(number, taught if self.arm.start == "rebase" else new, old)
            right = self.right()
            yield self.result(right, before, tokens)

    def result(self, right: str, before: str, tokens: int = 0) -> Result:
        """An exam, as it is kept."""
        strata = Marked(exam("exam", SCENARIO, ITEMS), right, before).strata()
        return Result(strata=strata, tokens=tokens)

    def right(self) -> str:
        """The champion's marks in the exam."""
        items = exam("exam", SCENARIO, ITEMS)
        questions = [item.question for item in items]
        return marks(items, Answerer(self.base).answers(questions, self.champion))

    def new(self, number: int, targets: Sequence[str]) -> list[Example]:
        """The new examples of a round."""
        made = pool(100 * self.seed + number, dict.fromkeys(targets, NEW // len(targets)))
        return [replay_example(item) for item in made]

    def _known(self, number: int, targets: Sequence[str]) -> list[PoolItem]:
        """Pool items that need no target and that the champion answers right."""
        path = self.folder / f"known-{number}.json"
        drawn = pool(100 * self.seed, dict.fromkeys(SKILLS, POOL)) + chains(self.seed, self.arm.chains)
        items = {item.item_id: item for item in drawn}
        kept: dict[str, list[str]] | None = read_json(path)
        if kept is None:
            able = [item_id for item_id, item in items.items() if not {*targets} & {*item.skills}]
            tried = [items[item_id] for item_id in ordered(able, self.seed, "known")[:CANDIDATES]]
            said = Answerer(self.base).answers([item.question for item in tried], self.champion)
            pairs = zip(tried, said, strict=True)
            kept = {"known": [item.item_id for item, answer in pairs if grade(item.answer, answer)]}
            write_json(path, kept)
        return [items[item_id] for item_id in kept["known"]]

    def replayed(
        self,
        number: int,
        targets: Sequence[str],
        new: Sequence[Example],
        reservoir: Reservoir,
        taught: Mapping[str, Example],
    ) -> list[Example]:
        """What the round replays."""
        if not self.arm.replay.share:
            return []
        known = {item.item_id: item for item in self._known(number, targets)}
        source = SkillMap((item.item_id, item.skills) for item in known.values())
        earlier = {
            skill: ids for skill, ids in reservoir.items() if self.arm.earlier and skill not in targets
        }
        ids = [each.example_id for each in new]
        plan = plan_replay(ids, earlier, source, self.seed, self.arm.replay)
        return [taught[each] for each in plan.earlier] + [
            replay_example(known[each]) for each in plan.original
        ]

    def mix(self, number: int, new: Sequence[Example], old: Sequence[Example]) -> list[Example]:
        """Exactly what a round trains on, new and replayed in shuffled passes of their own."""
        places = STEPS * BATCH
        replayed = round(places * self.arm.replay.share) if old else 0
        return [
            *islice(passes(new, f"new:{self.seed}:{number}"), places - replayed),
            *islice(passes(old, f"old:{self.seed}:{number}"), replayed),
        ]

    def _train(self, number: int, new: Sequence[Example], old: Sequence[Example]) -> int:
        if self.arm.start == "merge" and self.champion is not None:
            self.base = _merged(self.base, self.champion, self.folder / f"merged-{number}")
        champion = self.champion if self.arm.start == "continue" else None
        job = TrainingJob(
            self.base,
            champion,
            self.mix(number, new, old),
            self.folder / f"round-{number}",
            STEPS,
            BATCH,
            256,
            self.seed,
        )
        settings = SftSettings(lr=DEFAULT_LR, save_every=0, blend=self.arm.blend)
        with anchored(self.arm.kl, {each.example_id for each in old}):
            trained = SftTrainer(settings).train(job)
        self.champion = trained.adapter_dir
        return trained.tokens


@contextmanager
def anchored(weight: float, old: Set[str]) -> Iterator[None]:
    """Within it, rounds add `weight` times the mean KL divergence of the student from what it was at the
    round's beginning, over the taught tokens of the examples in `old`."""

    class Anchored(StepTrainer):
        def __init__(self, **arguments: Any) -> None:
            self._champion = deepcopy(arguments["model"]).eval()
            super().__init__(**arguments)

        def training_step(
            self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
        ) -> torch.Tensor:
            model.train()
            total = torch.zeros(())
            for batch in inputs[MICRO_BATCHES]:
                replayed, labels = batch.pop("replayed"), batch.pop("labels")[:, 1:]
                taught = labels != -100
                said = model(**batch, use_cache=False).logits[:, :-1].log_softmax(-1)  # (B, T - 1, V)
                with torch.no_grad():
                    was = self._champion(**batch, use_cache=False).logits[:, :-1].log_softmax(-1)
                gold = -said.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
                apart = (was.exp() * (was - said)).sum(-1) * replayed.unsqueeze(-1)
                loss = ((gold + weight * apart) * taught).sum() / inputs[TAUGHT_TOKENS]
                loss.backward()
                total += loss.detach()
            return total

        def _batch(self, rows: Sequence[int]) -> dict[str, Any]:
            replayed = torch.tensor([float(self._rows[row].example_id in old) for row in rows])
            return super()._batch(rows) | {"replayed": replayed}

    with patch("training.sft.StepTrainer", Anchored if weight else StepTrainer):
        yield


def _by_target(new: Sequence[Example], targets: Sequence[str]) -> dict[str, tuple[str, ...]]:
    return {skill: tuple(each.example_id for each in new if skill in each.skills) for skill in targets}


def _merged(base: Path, adapter: Path, folder: Path) -> Path:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, local_files_only=True)
    PeftModel.from_pretrained(model, str(adapter)).merge_and_unload().save_pretrained(folder)
    AutoTokenizer.from_pretrained(base, local_files_only=True).save_pretrained(folder)
    return folder


def tables(runs: Sequence[Rounds]) -> str:
    """The matrix of skills by rounds of the demo's own arm, and the arms side by side, as Markdown."""
    by_arm = {name: [run for run in runs if run.arm == name] for name in ARMS}
    parts = []
    if lives := by_arm[DEMO_ARM]:
        parts = [
            f"### Five rounds of the demo's settings, skill by skill, {len(lives)} seeds",
            _matrix(lives),
            "",
        ]
    return "\n".join([*parts, "### Five rounds, ways to make them", _arms(by_arm), ""])


def _points(run: Rounds, number: int) -> dict[str, float]:
    result = run.results[number]
    singles = {name.removeprefix("skill:"): 100 * r / n for name, (r, n) in result.strata.items()}
    return singles | scores(result, SCENARIO)


def _mean(lives: Sequence[Rounds], number: int, name: str) -> float:
    return float(np.mean([_points(run, number)[name] for run in lives]))


def _matrix(lives: Sequence[Rounds]) -> str:
    shown = (*SKILLS, "original", "chains", "unseen pairs")
    lines = ["| | " + " | ".join(shown) + " |", "|---|" + "---|" * len(shown)]
    for number in range(len(SCHEDULE) + 1):
        targets = SCHEDULE[number - 1] if number else ()
        told = [f"{_mean(lives, number, name):.0f}" for name in shown]
        cells = [f"**{text}**" if name in targets else text for name, text in zip(shown, told, strict=True)]
        lines.append(f"| {f'round {number}' if number else 'shipped'} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def kept(run: Rounds) -> dict[str, float]:
    """What one run kept, in points. `taught`: the mean of all taught skills after the last round less before
    the first; `slipped`: what those of earlier rounds have lost since their own round, on average; `worst
    loss`: the most that any skill has lost since the shipped student; the others: changes since then."""
    first, last = _points(run, 0), _points(run, len(SCHEDULE))
    gain = {name: last[name] - first[name] for name in last}
    slips = [
        _points(run, number)[skill] - last[skill]
        for number, skills in enumerate(SCHEDULE[:-1], start=1)
        for skill in skills
    ]
    return {
        "taught": float(np.mean([gain[skill] for skill in TAUGHT])),
        "slipped": float(np.mean(slips)),
        "common": float(np.mean([gain[skill] for skill in COMMON if skill not in TAUGHT])),
        "worst loss": max(-gain[skill] for skill in SKILLS),
    } | {name: gain[name] for name in ("original", "chains", "unseen pairs", "unseen order")}


def _arms(by_arm: Mapping[str, Sequence[Rounds]]) -> str:
    rows = {name: [kept(run) for run in lives] for name, lives in by_arm.items() if lives}
    shown = next(iter(rows.values()))[0]
    lines = [f"| | seeds | {' | '.join(shown)} | tokens |", "|---|---|" + "---|" * (len(shown) + 1)]
    for name, lives in rows.items():
        texts = [told([life[score] for life in lives]) for score in shown]
        tokens = np.mean([sum(result.tokens for result in run.results) for run in by_arm[name]])
        lines.append(f"| {ARMS[name].title} | {len(lives)} | {' | '.join(texts)} | {tokens:,.0f} |")
    return "\n".join(lines)


def told(values: Sequence[float], sign: str = "+") -> str:
    """Their mean, and where there are several half of its 95 % interval (Student's t)."""
    mean = f"{np.mean(values):{sign}.1f}"
    if len(values) < 2:
        return mean
    return f"{mean} ± {stats.t.ppf(0.975, len(values) - 1) * stats.sem(values):.1f}"


def run_all(
    arms: str, seeds: str, known: Sequence[str], cells: Path, minutes: float, live: Live
) -> list[Rounds]:
    """All finished runs, after running what is not: seed by seed until the time is over. Raises
    `typer.BadParameter` for an arm that is not `known`."""
    torch.set_num_threads(1)
    deadline, console, runs = time.monotonic() + 60 * minutes, Console(), finished(cells)
    if unknown := sorted({*arms.split(",")} - {*known}):
        raise typer.BadParameter(f"unknown arms {unknown}; there are {', '.join(known)}")
    done = {(run.arm, run.seed) for run in runs}
    wanted = [(arm, int(seed)) for seed in seeds.split(",") for arm in arms.split(",")]
    for name, seed in track([each for each in wanted if each not in done], "arms", console=console):
        if time.monotonic() > deadline:
            console.print("the time is over; the same command continues")
            break
        results: list[Result] = []
        for number, result in enumerate(live(name, seed)):
            results.append(result)
            points = {key: round(value, 1) for key, value in scores(result, SCENARIO).items()}
            console.print(f"{name}, seed {seed}, round {number}: {points}", highlight=False, soft_wrap=True)
        runs.append(Rounds(arm=name, seed=seed, results=tuple(results)))
        write_rows(cells, runs)
    return runs


def main(
    arms: Annotated[str, typer.Option(help="With commas.")] = ",".join(ARMS),
    seeds: Annotated[str, typer.Option(help="With commas.")] = "0,1,2",
    cells: Annotated[Path, typer.Option(help="A line for each finished arm and seed.")] = CELLS,
    work: Annotated[Path, typer.Option(help="What can be made again.")] = WORK,
    minutes: Annotated[float, typer.Option(help="No arm begins after so many minutes.")] = 24 * 60.0,
) -> None:
    """Run what is not finished, then print the tables."""

    def live(name: str, seed: int) -> Iterable[Result]:
        return Life(ARMS[name], seed, work / f"{name}-{seed}", student_dir("llama")).results()

    if runs := run_all(arms, seeds, (*ARMS,), cells, minutes, live):
        print(tables(runs))


if __name__ == "__main__":
    typer.run(main)
