"""The data of a cell, through the product's own doors: its diagnoses, policy, strategies, curate graph and
replay.

The shipped student answers the first 1,000 questions of the drifted traffic, and then so many more as the
policy waits for; a symbolic teacher that errs in 15 % diagnoses the wrong ones; the policy decides which
skills to teach. That is the evidence of one (student, scenario, seed), and all methods have the same.

So that nothing but the new examples differs between methods, each cell trains on exactly `steps` x 32
presentations: the new examples for one part, the same replayed ones for the rest, each cycled in passes of
its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from random import Random

from agent.budget import Usage
from agent.catalog import SkillCatalog, SkillMap
from agent.chance import ordered
from agent.decision import PolicyInput, PolicySettings, PoolState
from agent.items import Example, PoolItem, Provenance
from agent.plan import Failure, StrategySettings
from agent.policy import decide
from agent.posterior import ReadSettings, read
from agent.profile import Observation, fold
from agent.replay import ReplaySettings, plan_replay
from benchmarks.learning_cells import Cell
from benchmarks.learning_scores import SCENARIOS, Answerer, drifted, exam, gold_of
from graphs.curate.graph import build_curate, run_curation
from graphs.curate.neighbours import tfidf
from graphs.curate.plan import CurateContext, Curation, CurationPlan
from graphs.curate.planning import Evidence, plan_data
from graphs.filters.assess import GoldAnswer
from graphs.monitor.diagnose import MonitorContext, OutputDiagnosis, assess, explain
from loop.config import CONFIGS, load
from loop.demo.stream import START
from loop.tasks.world.checker import grade, needed_skills
from loop.tasks.world.teacher import SymbolicTeacher
from loop.tasks.world.traffic import Phase, Traffic
from loop.tasks.world.world import DESCRIPTIONS, ORIGINAL, SKILLS, Mixture, Split, draw, pool
from streams.events import StudentOutput
from streams.files import read_json, write_json


@dataclass(frozen=True)
class Size:
    """How much there is of everything: answers watched at first and at most, pool items of each skill and
    those tried for replay, distinct new examples where a method has as many, fresh chains to replay."""

    watched: int = 1000
    most: int = 3000
    pool: int = 300
    candidates: int = 2000
    pairs: int = 1000
    chains: int = 600


SIZES = {"full": Size(), "tiny": Size(100, 200, 20, 60, 30, 20)}
MORE = 100
"""Answers watched more at a time, while the policy waits."""
ERROR_RATE = 0.15
BATCH = 32
DEMO = load(CONFIGS / "demo.toml")
READ = ReadSettings(window_buckets=None, half_life_buckets=None, prior_strength=DEMO.profile.prior_strength)
CATALOG = SkillCatalog.of(*((name, DESCRIPTIONS[name]) for name in SKILLS))


class NothingDecided(Exception):
    """The policy opens no round in this scenario: there is nothing to compare."""


@dataclass(frozen=True)
class Made:
    """New examples of a method, and what the teacher was asked for them."""

    examples: Sequence[Example]
    usage: Usage


@dataclass(frozen=True)
class Watch:
    """What the loop has seen of one student under one drift, and what it has decided. Answers are kept in
    `folder`."""

    cell: Cell
    answerer: Answerer
    folder: Path

    @cached_property
    def teacher(self) -> SymbolicTeacher:
        """The teacher of the diagnoses and of new questions."""
        return SymbolicTeacher(error_rate=ERROR_RATE, seed=self.cell.seed)

    @cached_property
    def pool(self) -> list[PoolItem]:
        """300 items drawn for every skill, a fifth of them chained with a common one."""
        return pool(self.cell.seed, dict.fromkeys(SKILLS, self.size.pool))

    @property
    def size(self) -> Size:
        """How much there is."""
        return SIZES[self.cell.size]

    def _asked(self, count: int) -> list[tuple[str, str]]:
        traffic = Traffic(self.cell.seed, (Phase(0, drifted(self.cell.scenario)),))
        asked = (traffic.question(index) for index in range(count))
        return [(key, problem.question) for key, problem in asked]

    def _file(self, what: str) -> Path:
        size = "" if self.cell.size == "full" else f"-{self.cell.size}"
        return self.folder / f"{what}-{self.cell.arch}-{self.cell.scenario}-{self.cell.seed}{size}.json"

    @cached_property
    def decided(self) -> tuple[list[tuple[str, str]], list[OutputDiagnosis], tuple[str, ...]]:
        """The questions watched, their diagnoses, and the skills of the policy's round. Raises
        `NothingDecided`."""
        kept = read_json(self._file("watched")) or {"answers": []}
        answers: list[str] = kept["answers"]
        count = max(self.size.watched, len(answers))
        while count <= self.size.most:
            asked = self._asked(count)
            if len(answers) < count:
                answers += self.answerer.answers([question for _, question in asked[len(answers) :]])
                write_json(self._file("watched"), {"answers": answers})
            diagnoses = self._diagnosed(asked, answers)
            targets = self._targets(diagnoses)
            if targets:
                return asked, diagnoses, targets
            count += MORE
        raise NothingDecided(
            f"{self.cell.scenario}, seed {self.cell.seed}: no round in {self.size.most} answers"
        )

    def _diagnosed(self, asked: Sequence[tuple[str, str]], answers: Sequence[str]) -> list[OutputDiagnosis]:
        context = MonitorContext(
            self.teacher, CATALOG, (GoldAnswer(lambda _, gold, said: grade(gold, said)),)
        )
        outputs = [
            StudentOutput(
                event_id=key, occurred_at=START, student="s", student_version=1, question_id=key,
                question=question, answer=answer, gold=gold_of(question)[1],
            )
            for (key, question), answer in zip(asked, answers, strict=True)
        ]  # fmt: skip
        return [explain(assess(output, context), context) for output in outputs]

    def _targets(self, diagnoses: Sequence[OutputDiagnosis]) -> tuple[str, ...]:
        seen = [
            Observation("s", 1, 0, row.needed, row.missing, row.verdict == "incorrect", True)
            for row in diagnoses
        ]
        items = SkillMap((item.item_id, item.skills) for item in self.pool)
        pools = {skill: PoolState(available=len(items.items(skill))) for skill in items.sizes}
        profile = read(fold(seen), "s", 1, 0, READ)
        settings = PolicySettings(
            max_skills=len(SCENARIOS[self.cell.scenario]), min_answers=min(600, self.size.watched)
        )
        decision = decide(PolicyInput(profile, len(seen), len(seen), pools), settings)
        return tuple(target.skill for target in decision.skills)

    @property
    def targets(self) -> tuple[str, ...]:
        """The skills of the policy's round."""
        return self.decided[2]

    @cached_property
    def evidence(self) -> Evidence:
        """The failures at the target skills, as the loop's curate worker hands them to a strategy."""
        asked, diagnoses, targets = self.decided
        failures = [
            Failure(question_id=row.event_id, needed=row.needed, missing=missing)
            for row in diagnoses
            if (missing := tuple(skill for skill in row.missing if skill in targets))
        ]
        return Evidence(failures, dict(asked), _levels(self.pool))

    @cached_property
    def watching(self) -> Usage:
        """What the diagnoses cost."""
        return sum((row.usage for row in self.decided[1]), Usage())

    @cached_property
    def known(self) -> list[PoolItem]:
        """Pool items that need no target and that the champion answers right, as the curate worker finds
        them."""
        items = {item.item_id: item for item in self.pool if not set(self.targets) & set(item.skills)}
        kept = read_json(self._file("known"))
        if kept is None:
            tried = [
                items[item_id] for item_id in ordered(items, self.cell.seed, "known")[: self.size.candidates]
            ]
            answers = self.answerer.answers([item.question for item in tried])
            right = [
                item.item_id for item, said in zip(tried, answers, strict=True) if grade(item.answer, said)
            ]
            kept = {"known": right}
            write_json(self._file("known"), kept)
        return [items[item_id] for item_id in kept["known"]]


def _levels(items: Sequence[PoolItem]) -> dict[str, int]:
    """Difficulty 1 to 5 by the length of the worked solution, a fifth of the pool each."""
    ranked = sorted(items, key=lambda item: (len(item.solution), item.item_id))
    return {item.item_id: 1 + 5 * place // len(ranked) for place, item in enumerate(ranked)}


def _items(questions: Sequence[str], name: str) -> list[PoolItem]:
    """Questions with their gold solutions, as a pool of their own."""
    items = []
    for number, question in enumerate(dict.fromkeys(questions)):
        solution, answer = gold_of(question)
        skills = tuple(dict.fromkeys(needed_skills(question)))
        items.append(
            PoolItem(
                item_id=f"{name}-{number}", question=question, solution=solution, answer=answer, skills=skills
            )
        )
    return items


def _fresh(mixture: Mixture, split: Split, seed: int, count: int) -> list[PoolItem]:
    rng, questions = Random(f"fresh:{split}:{seed}"), dict[str, None]()
    while len(questions) < count:
        questions[draw(rng, mixture, split).question] = None
    return _items(list(questions), "fresh")


def _vanilla(watch: Watch, cell: Cell) -> list[PoolItem]:
    return _fresh(ORIGINAL, "pool", cell.seed, watch.size.pairs)


def _traffic(watch: Watch, cell: Cell) -> list[PoolItem]:
    return _fresh(drifted(cell.scenario), "pool", cell.seed, _places(cell)[0])


def _watched(watch: Watch, cell: Cell) -> list[PoolItem]:
    return _items([question for _, question in watch.decided[0]], "watched")


def _failed(watch: Watch, cell: Cell) -> list[PoolItem]:
    asked, diagnoses, _ = watch.decided
    wrong = [
        question
        for (_, question), row in zip(asked, diagnoses, strict=True)
        if row.decided_by == "gold" and row.verdict != "correct"
    ]
    return _items(wrong, "failed")


GIVEN: Mapping[str, Callable[[Watch, Cell], list[PoolItem]]] = {
    "vanilla": _vanilla, "traffic": _traffic, "watched": _watched, "failed": _failed,
}  # fmt: skip
"""Methods that train on given questions with gold solutions: the strategy `original` over a pool of their
own. `traffic` never sees a question twice."""


def _places(cell: Cell) -> tuple[int, int, int]:
    """Presentations of new, of replayed and of replayed chained examples."""
    rule = REPLAYS[cell.replay]
    old = round(cell.steps * BATCH * rule.settings.share)
    chained = round(old * rule.chained)
    return cell.steps * BATCH - old, old - chained, chained


def new_examples(watch: Watch, cell: Cell) -> Made:
    """The new examples of a cell, from the curate graph. Raises `agent.plan.StrategyError`."""
    given = GIVEN.get(cell.method)
    items = given(watch, cell) if given else watch.pool
    name, pairs = ("original", None) if given else (cell.method, watch.size.pairs)
    strategy = StrategySettings(pairs=watch.size.pairs, k_sel=15, prompts=10, k_embed=15)
    by_id = {item.item_id: item for item in items}
    plan = CurationPlan(
        seed=cell.seed,
        data=plan_data(name, by_id, watch.evidence, cell.seed, strategy, tfidf),
        pairs=pairs,
        strategy=strategy,
        per_task=100,
    )
    context = CurateContext(
        teacher=watch.teacher,
        pool=items,
        held_out=[item.question for item in exam("exam", cell.scenario, cell.items)],
        grade=grade,
    )
    made: Curation = run_curation(build_curate(), f"{cell.method}-{cell.seed}", plan, context)
    return Made(made.examples, made.report.usage)


BY_SKILL = DEMO.curate.replay.model_copy(update={"composition_share": 0.0})
"""The demo's replay as it was before compositions had a share of it."""


@dataclass(frozen=True)
class ReplayRule:
    """How a cell replays: the product's settings, and which part of it comes from `source` in place of the
    product's draw."""

    settings: ReplaySettings = BY_SKILL
    chained: float = 0.0
    source: Callable[[Watch, Cell], list[PoolItem]] = lambda watch, cell: []


def _pool_chains(watch: Watch, cell: Cell) -> list[PoolItem]:
    """Known pool items that need several skills, as many of each combination."""
    chains = [item for item in watch.known if len(item.skills) > 1]
    groups: dict[tuple[str, ...], list[PoolItem]] = {}
    for item in chains:
        groups.setdefault(item.skills, []).append(item)
    return [item for group in groups.values() for item in group]


def _chains(watch: Watch, cell: Cell) -> list[PoolItem]:
    """Chains of the original mixture, right or not; none needs a target."""
    chains = _fresh(Mixture(ORIGINAL.weights, 1.0), "pool", cell.seed, watch.size.chains)
    return [item for item in chains if not set(watch.targets) & set(item.skills)]


def _known_chains(watch: Watch, cell: Cell) -> list[PoolItem]:
    chains = _chains(watch, cell)
    answers = watch.answerer.answers([item.question for item in chains])
    return [item for item, said in zip(chains, answers, strict=True) if grade(item.answer, said)]


def _right_traffic(watch: Watch, cell: Cell) -> list[PoolItem]:
    """What the champion has answered right on traffic."""
    asked, diagnoses, _ = watch.decided
    pairs = zip(asked, diagnoses, strict=True)
    return _items([question for (_, question), row in pairs if row.verdict == "correct"], "right")


REPLAYS: Mapping[str, ReplayRule] = {
    "none": ReplayRule(ReplaySettings(share=0.0)),
    "loop": ReplayRule(),
    "half-pool-chains": ReplayRule(chained=0.5, source=_pool_chains),
    "half-known-chains": ReplayRule(chained=0.5, source=_known_chains),
    "half-right-traffic": ReplayRule(chained=0.5, source=_right_traffic),
}


def replayed(watch: Watch, cell: Cell) -> tuple[list[Example], list[Example]]:
    """What is replayed, the same for every method, and what of the rule's own source."""
    rule = REPLAYS[cell.replay]
    if not rule.settings.share:
        return [], []
    items = {item.item_id: item for item in watch.known}
    source = SkillMap((item.item_id, item.skills) for item in items.values())
    plan = plan_replay([f"new-{n}" for n in range(watch.size.pairs)], {}, source, cell.seed, rule.settings)
    return [replay_example(items[item_id]) for item_id in plan.original], [
        replay_example(item) for item in rule.source(watch, cell)
    ]


def replay_example(item: PoolItem) -> Example:
    """A pool item as an example to replay."""
    where = Provenance(strategy="replay", skill=None, source_ids=(item.item_id,))
    return Example(
        example_id=item.item_id,
        prompt=item.question,
        completion=item.solution,
        skills=item.skills,
        provenance=where,
    )


def presentations(
    new: Sequence[Example], old: tuple[Sequence[Example], Sequence[Example]], cell: Cell
) -> list[Example]:
    """Exactly what the cell trains on, `steps` x 32 examples, each part in shuffled passes of its own."""
    return [
        example
        for name, part, places in zip(("new", "old", "chained"), (new, *old), _places(cell), strict=True)
        for example in islice(passes(part, f"{name}:{cell.seed}"), places)
    ]


def passes(examples: Sequence[Example], seed: str) -> Iterator[Example]:
    """The examples again and again, shuffled anew in each pass; none where there are none."""
    rng = Random(seed)
    while examples:
        yield from rng.sample(list(examples), len(examples))
