"""What the rest of a run will ask of the teacher and cost, before it is spent: counts where they are known,
assumptions where not.

Known are the data and the results of finished stages; what comes after an unfinished one is assumed by
`[budget]`. Tokens are estimated from characters. It is an estimate: the cap, checked before every call, is
the guarantee.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from agent.budget import Price, UnpricedModel, Usage
from agent.plan import StrategyError
from graphs.curate.dataset import rewrite_calls
from loop.offline.bench import Bench
from loop.offline.config import StatConfig
from loop.offline.records import AssessedRow
from loop.offline.stages.dataset import curation_plan

PAPER_SKILLS = 20
SKILL_CHARS = 25
SYNTHETIC = frozenset({"stat-syn", "embed-syn"})
POOL_WIDE = frozenset({"original", "augment", "hard"})


@dataclass(frozen=True)
class Line:
    """One kind of call: how many are left, the tokens of all of them, and whether the number is assumed."""

    kind: str
    calls: int
    prompt_tokens: int
    completion_tokens: int
    assumed: bool

    def usd(self, price: Price) -> float:
        """What they cost."""
        return price.usd(self.prompt_tokens, self.completion_tokens)


def price_of(config: StatConfig) -> Price:
    """The teacher's price. Raises `UnpricedModel` for a chat model without one."""
    if config.teacher.kind != "chat" or config.teacher.chat is None:
        return Price(free=True)
    if config.teacher.chat.price is None:
        raise UnpricedModel(
            f"no price for model {config.teacher.chat.model!r}: "
            "set teacher.chat.price, or price = { free = true }"
        )
    return config.teacher.chat.price


def estimate(bench: Bench, until: str, standing: frozenset[str]) -> list[Line]:
    """The calls that are left up to the stage `until`, one line a kind; kinds without calls are left out.

    `standing` names the stages whose results stand (`loop.offline.pipeline.standing`).
    """
    lines = [*_labelling(bench, standing)]
    if until not in {"catalog", "labels", "answers"}:
        lines.append(_diagnosing(bench, standing))
    if until in {"dataset", "train", "evaluate"} and bench.named("dataset") not in standing:
        lines += _dataset(bench, standing)
    return [line for line in lines if line.calls > 0 and not (until == "catalog" and line.kind == "label")]


def total(lines: Sequence[Line], price: Price) -> Usage:
    """All lines together."""
    return Usage(
        calls=sum(line.calls for line in lines),
        prompt_tokens=sum(line.prompt_tokens for line in lines),
        completion_tokens=sum(line.completion_tokens for line in lines),
        usd=sum(line.usd(price) for line in lines),
    )


def _line(bench: Bench, kind: str, calls: int, shown: float, said: int, assumed: bool) -> Line:
    """`shown` characters beside the instructions and `said` tokens in each call; calls whose reply is kept
    cost nothing."""
    section = bench.config.budget
    left = max(0, calls - bench.replies.count(kind))
    return Line(
        kind,
        left,
        round(left * (section.prompt_overhead_tokens + shown / section.chars_per_token)),
        left * said,
        assumed,
    )


def _question_chars(bench: Bench) -> float:
    texts = [item.question for item in (*bench.data.pool, *bench.data.validation)]
    return sum(map(len, texts)) / len(texts)


def _solution_chars(bench: Bench) -> float:
    return sum(len(item.solution) for item in bench.data.pool) / len(bench.data.pool)


def _labelling(bench: Bench, standing: frozenset[str]) -> list[Line]:
    lines: list[Line] = []
    questions, chars = [*bench.data.pool, *bench.data.validation], _question_chars(bench)
    said = bench.config.budget.label_tokens
    if bench.config.catalog.source == "teacher" and "catalog" not in standing:
        lines.append(_line(bench, "name_skill", len(bench.data.pool), chars, said, False))
    if "labels" not in standing and bench.config.catalog.labels != "given":
        asked = [item for item in questions if bench.config.catalog.labels == "teacher" or not item.skills]
        lines.append(_line(bench, "label", len(asked), chars + PAPER_SKILLS * SKILL_CHARS, said, False))
    return lines


def _difficult(bench: Bench, standing: frozenset[str]) -> tuple[int, bool]:
    """Difficult answers, and whether their number is assumed."""
    if "assessed" in standing:
        return sum(row.difficult for row in bench.folder.rows("assessed", AssessedRow)), False
    judged = len(bench.data.validation) * bench.config.filters.diagnosed_samples
    return round(judged * bench.config.budget.difficult_share), True


def _diagnosing(bench: Bench, standing: frozenset[str]) -> Line:
    difficult, assumed = _difficult(bench, standing)
    if "diagnoses" in standing:
        difficult = 0
    elif assumed and bench.config.filters.order[0] == "teacher":
        difficult, assumed = len(bench.data.validation) * bench.config.filters.diagnosed_samples, False
    shown = _question_chars(bench) + _solution_chars(bench) + PAPER_SKILLS * SKILL_CHARS
    return _line(bench, "diagnose", difficult, shown, bench.config.budget.diagnose_tokens, assumed)


def _dataset(bench: Bench, standing: frozenset[str]) -> list[Line]:
    """A rewritten solution is one call, and so is each of the solutions of a new question."""
    section, strategy, assumed = bench.config.budget, bench.config.strategy, "diagnoses" not in standing
    calls = _assumed(bench, standing) if assumed else _planned(bench)
    question, solution = _question_chars(bench), _solution_chars(bench)
    shown, said = question * strategy.references, section.question_tokens * strategy.questions
    return [
        _line(bench, "rewrite", calls["rewrite"], question + solution, section.solution_tokens, assumed),
        _line(bench, "write", calls["write"], shown, said, assumed),
        _line(bench, "solve", calls["solve"], question, section.solution_tokens, assumed),
    ]


def _planned(bench: Bench) -> Counter[str]:
    """The plan's calls."""
    try:
        plan = curation_plan(bench)
    except StrategyError:
        return Counter()  # the stage will say so
    settings, requests = bench.config.strategy, len(plan.data.requests)
    rewrites = rewrite_calls(plan, [draw.item_id for draw in plan.data.draws])
    return Counter(
        rewrite=sum(call["count"] for call in rewrites),
        write=requests,
        solve=requests * settings.questions * settings.solutions,
    )


def _assumed(bench: Bench, standing: frozenset[str]) -> Counter[str]:
    """The calls for assumed failures."""
    difficult, _ = _difficult(bench, standing)
    strategy, pool = bench.config.strategy, len(bench.data.pool)
    failures = round(difficult * bench.config.budget.missing_per_answer)
    if strategy.name in SYNTHETIC:
        requests = (failures if strategy.name == "stat-syn" else difficult) * strategy.prompts
        return Counter(write=requests, solve=requests * strategy.questions * strategy.solutions)
    draws = pool if strategy.name in POOL_WIDE else min(failures * strategy.k_sel, pool)
    rewritten = strategy.rewrite and strategy.name != "original"
    return Counter(rewrite=min(strategy.pairs, draws * strategy.answers) if rewritten else 0)
