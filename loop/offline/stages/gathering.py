"""The steps of the stage dataset that ask the teacher: rewriting drawn solutions (STAT-Sel) and making new
questions (STAT-Syn).

Nothing is asked before repeats and contaminated questions are out, and every question that is trained on has
passed both checks: against the questions that must not be trained on, and against the ones already in the
data set.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from agent.budget import Usage
from agent.chance import rank
from agent.items import PoolItem
from agent.plan import DataPlan, Draw, Pair, Request, choose_pairs
from graphs.curate.duplicates import QuestionIndex, SameQuestion
from graphs.curate.steps import Answer, agreeing
from graphs.filters.final_answers import canonical
from graphs.teacher import Solutions, Written
from loop.offline.bench import Bench
from loop.offline.journal import Failed, Job
from streams.files import text_sha256


@dataclass(frozen=True)
class Text:
    """One question-answer pair on its way into the data set."""

    question: str
    solution: str
    draw: Draw
    skills: tuple[str, ...]
    source_ids: tuple[str, ...]
    kind: Literal["original", "rewritten", "synthesized"]
    usage: Usage = field(default_factory=Usage)


@dataclass
class Gathered:
    """What came together, and what was left out and why."""

    texts: list[Text] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Sieve:
    """Keeps untouchable questions and repeats out."""

    untouchable: QuestionIndex
    seen: QuestionIndex
    dropped: Counter[str]

    @classmethod
    def open(cls, bench: Bench, dropped: Counter[str], known: Iterable[str] = ()) -> Sieve:
        """A sieve for the run's held-out and validation questions; `known` questions count as repeats."""
        section = bench.config.duplicates
        held_out = SameQuestion(threshold=section.contamination, numbers_matter=section.numbers_matter)
        repeats = SameQuestion(threshold=section.duplicate, numbers_matter=section.numbers_matter)
        return cls(QuestionIndex(held_out, bench.data.untouchable), QuestionIndex(repeats, known), dropped)

    def passes(self, question: str) -> bool:
        """Whether a question is clean and new; it is not new a second time."""
        contaminated = self.untouchable.find(question)
        repeat = None if contaminated else self.seen.find(question)
        if contaminated or repeat:
            self.dropped[f"contaminated-{contaminated}" if contaminated else f"duplicate-{repeat}"] += 1
            return False
        self.seen.add(question)
        return True


def gather_draws(bench: Bench, plan: DataPlan, items: Mapping[str, PoolItem], gathered: Gathered) -> None:
    """Pairs from drawn pool questions: as many as the settings allow, rewritten where the plan says so."""
    sieve = Sieve.open(bench, gathered.dropped)
    drawn = sorted({draw.item_id for draw in plan.draws})
    usable = {item_id for item_id in drawn if item_id in items and sieve.passes(items[item_id].question)}
    gathered.dropped["without solution"] += sum(item_id not in items for item_id in drawn)
    pairs = choose_pairs(plan, bench.config.strategy.pairs, bench.config.seed, usable.__contains__)
    if plan.rewritten:
        _rewritten(bench, pairs, items, gathered)
    else:
        gathered.texts += [_original(items[pair.draw.item_id], pair.draw) for pair in pairs]


def _original(item: PoolItem, draw: Draw) -> Text:
    return Text(item.question, item.solution, draw, item.skills, (item.item_id,), "original")


def _rewritten(
    bench: Bench, pairs: Sequence[Pair], items: Mapping[str, PoolItem], gathered: Gathered
) -> None:
    """One request for each question. A rewritten solution whose final answer changed is left out, the pool's
    own takes one place."""
    wanted: dict[str, list[Draw]] = {}
    for pair in pairs:
        wanted.setdefault(pair.draw.item_id, []).append(pair.draw)
    jobs = {item_id: _rewrite_job(bench, items[item_id], len(wanted[item_id])) for item_id in sorted(wanted)}
    found = bench.runner.run("rewrite", list(jobs.values()), Solutions)
    for item_id, job in jobs.items():
        reply = found[job.key]
        item, draws = items[item_id], wanted[item_id]
        texts = [] if isinstance(reply, Failed) else _same_answer(bench, item, reply, gathered.dropped)
        usage = Usage() if isinstance(reply, Failed) else reply.usage
        gathered.dropped["rewriting failed"] += isinstance(reply, Failed)
        for at, (draw, text) in enumerate(zip(draws, texts, strict=False)):
            cost = usage if at == 0 else Usage()
            gathered.texts.append(Text(item.question, text, draw, item.skills, (item_id,), "rewritten", cost))
        if len(texts) < len(draws):
            gathered.texts.append(_original(item, draws[len(texts)]))


def _rewrite_job(bench: Bench, item: PoolItem, count: int) -> Job[Solutions]:
    seed = rank(bench.config.seed, "rewrite", item.item_id) % 2**31
    key = text_sha256("rewrite", bench.teacher_id, item.question, item.solution, str(count), str(seed))
    return Job(key, partial(bench.teacher.rewrite, item, count, seed))


def _same_answer(bench: Bench, item: PoolItem, reply: Solutions, dropped: Counter[str]) -> list[str]:
    """The distinct rewritten solutions that end in the right answer."""
    kept: dict[str, None] = {}
    for one in reply.solutions:
        stated = canonical(one.answer) == canonical(item.answer)
        if item.answer and not stated and not bench.grade(item.question, item.answer, one.text):
            dropped["rewritten-answer-changed"] += 1
        elif one.text.strip() in kept or one.text.strip() == item.solution.strip():
            dropped["rewritten-repeat"] += 1
        else:
            kept[one.text.strip()] = None
    return list(kept)


def gather_requests(bench: Bench, plan: DataPlan, items: Mapping[str, PoolItem], gathered: Gathered) -> None:
    """Pairs from new questions: written, sifted against pool and untouchable questions, solved, kept where
    answers agree."""
    settings, seed = bench.config.strategy, bench.config.seed
    fresh = _fresh(bench, plan, items, gathered.dropped)
    jobs = [_solve_job(bench, text, settings.solutions, seed) for text, _, _ in fresh]
    solved = bench.runner.run("solve", jobs, Solutions)
    for (text, request, usage), job in zip(fresh, jobs, strict=True):
        reply = solved[job.key]
        answers = (
            []
            if isinstance(reply, Failed)
            else [Answer(text=one.text, answer=one.answer) for one in reply.solutions]
        )
        kept = agreeing(answers, settings.min_agreement, canonical)
        gathered.dropped["inconsistent" if answers else "unsolved"] += not kept
        cost = usage + (Usage() if isinstance(reply, Failed) else reply.usage)
        draw = Draw("", request.write.skill, request.cause, request.part)
        for at, answer in enumerate(kept):
            skills, sources = (request.write.skill,), request.write.references
            gathered.texts.append(
                Text(text, answer["text"], draw, skills, sources, "synthesized", cost if at == 0 else Usage())
            )
    _cut(gathered, settings.pairs, seed)


def _fresh(
    bench: Bench, plan: DataPlan, items: Mapping[str, PoolItem], dropped: Counter[str]
) -> list[tuple[str, Request, Usage]]:
    """The new questions in the order of their requests, repeats and contaminated ones left out."""
    jobs = [_write_job(bench, request, items) for request in plan.requests]
    written = bench.runner.run("write", jobs, Written)
    sieve = Sieve.open(bench, dropped, (item.question for item in items.values()))
    fresh: list[tuple[str, Request, Usage]] = []
    for request, job in zip(plan.requests, jobs, strict=True):
        reply = written[job.key]
        texts = () if isinstance(reply, Failed) else reply.questions[: request.write.count]
        dropped["writing failed"] += not texts
        usage = Usage() if isinstance(reply, Failed) else reply.usage
        for at, text in enumerate(one.strip() for one in texts):
            if text and sieve.passes(text):
                fresh.append((text, request, usage if at == 0 else Usage()))
    return fresh


def _write_job(bench: Bench, request: Request, items: Mapping[str, PoolItem]) -> Job[Written]:
    ask = request.write
    references = [items[item_id] for item_id in ask.references if item_id in items]
    texts = (one.question for one in references)
    key = text_sha256("write", bench.teacher_id, ask.skill, str(ask.count), str(ask.seed), *texts)
    return Job(key, partial(bench.teacher.write, ask.skill, references, ask.count, ask.seed))


def _solve_job(bench: Bench, question: str, count: int, seed: int) -> Job[Solutions]:
    own_seed = rank(seed, "solve", question) % 2**31
    key = text_sha256("solve", bench.teacher_id, question, str(count), str(own_seed))
    return Job(key, partial(bench.teacher.solve, question, count, own_seed))


def _cut(gathered: Gathered, pairs: int, seed: int) -> None:
    """First one solution of every question, then second ones, until there are enough: variety before
    repetition."""
    place: Counter[str] = Counter()
    ranked: list[tuple[int, int, int]] = []
    for text in gathered.texts:
        ranked.append((place[text.question], rank(seed, "cut", text.question), len(ranked)))
        place[text.question] += 1
    gathered.dropped["surplus"] += max(0, len(ranked) - pairs)
    gathered.texts = [gathered.texts[at] for _, _, at in sorted(ranked)[:pairs]]
