"""The demo's world: problems generated from a seed, each needing known skills, with worked solutions a
program can check.

Operands are split by hash into four disjoint sets: `gate` and `exam` (together the test set, 20 %), `traffic`
(40 %) and `pool` (40 %). A chain's every link, with the result that flows into it, lies in its split.
Held-out sets are fixed; pool and traffic depend on a seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import pairwise
from random import Random
from typing import Literal

from agent.items import HeldOutItem, PoolItem
from loop.tasks.world.checker import Check, check, final_answer, grade, needed_skills
from loop.tasks.world.questions import ORDERS, Link, render, solve, work
from loop.tasks.world.skills import BY_NAME, TABLE, Args

__all__ = [
    "COMMON", "DESCRIPTIONS", "MIDDLING", "ORIGINAL", "RARE", "SKILLS", "STEADY", "STUBBORN", "UNSEEN_PAIRS",
    "Check", "HeldOutSizes", "Mixture", "Problem", "Split", "chain", "chains", "check", "draw",
    "final_answer", "grade", "held_out", "mixture_items", "needed_skills", "pool", "single", "split_of",
]  # fmt: skip

Split = Literal["gate", "exam", "traffic", "pool"]

SKILLS: tuple[str, ...] = tuple(skill.name for skill in TABLE)
STUBBORN = "mod"
COMMON: tuple[str, ...] = ("add", "sub", "mul", "div", "max", "unit", STUBBORN)
STEADY: tuple[str, ...] = ("add", "mul", "div", "max", "unit")
MIDDLING: tuple[str, ...] = ("bill", "total")
RARE: tuple[str, ...] = ("average", "perimeter", "left", "equation", "profit", "fraction")
DESCRIPTIONS: dict[str, str] = {skill.name: skill.description for skill in TABLE}
UNSEEN_PAIRS: frozenset[tuple[str, str]] = frozenset(
    {("sub", "mul"), ("max", "div"), ("mul", "add"), ("div", "sub")}
)
_TRIES = 12
_LARGEST_LINK = 999


@dataclass(frozen=True)
class Mixture:
    """How often each skill is asked (`weights`, any scale), and the share of questions that chain two or
    three skills."""

    weights: Mapping[str, float]
    chain_share: float = 0.15

    def shifted(self, shares: Mapping[str, float]) -> Mixture:
        """This mixture with some skills raised (or lowered) to the given shares; the others keep their
        proportions."""
        rest = {name: weight for name, weight in self.weights.items() if name not in shares}
        scale = (1 - sum(shares.values())) / sum(rest.values())
        return Mixture(
            {**{name: weight * scale for name, weight in rest.items()}, **shares}, self.chain_share
        )


_COMMON_WEIGHTS = {
    "add": 0.16,
    "sub": 0.21,
    "mul": 0.17,
    "div": 0.16,
    "max": 0.12,
    "unit": 0.11,
    STUBBORN: 0.03,
}
_OTHER_WEIGHTS = {"bill": 0.0025, "total": 0.002} | {
    "average": 0.0005, "perimeter": 0.0003, "left": 0.003, "equation": 0.002, "profit": 0.0012,
    "fraction": 0.0045,
}  # fmt: skip
ORIGINAL = Mixture(_COMMON_WEIGHTS | _OTHER_WEIGHTS)


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with its worked solution; `skills` in order of use, `form` names the wording."""

    question: str
    solution: str
    answer: str
    skills: tuple[str, ...]
    form: str = field(compare=False)


def split_of(skill: str, args: Args) -> Split:
    """The one split that operands of a skill belong to; commuted operands share it."""
    key = f"{skill}:{sorted(args) if BY_NAME[skill].commutes else list(args)}"
    bucket = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=4).digest()) % 100
    return "gate" if bucket < 10 else "exam" if bucket < 20 else "traffic" if bucket < 60 else "pool"


def single(rng: Random, skill: str, split: Split) -> Problem:
    """A question that needs one skill."""
    while True:
        problem = chain(rng, (skill,), split)
        if problem is not None:
            return problem


def chain(rng: Random, skills: Sequence[str], split: Split, order: str | None = None) -> Problem | None:
    """A question in which the result of each skill flows into the next; None when the operands drawn do not
    suit."""
    links: list[Link] = []
    for name in skills:
        link = _draw_link(rng, name, split, links[-1] if links else None)
        if link is None:
            return None
        links.append(link)
    return _problem(links, order or rng.choice(ORDERS))


def draw(rng: Random, mixture: Mixture, split: Split) -> Problem:
    """One question from a mixture, with operands of one split. Pairs in `UNSEEN_PAIRS` are never chained.

    Where operands do not suit a chain, other skills are drawn. In the pool split the length is drawn again
    too, so chains are rarer there (about 10 % for a `chain_share` of 15 %): the shipped students were
    pretrained on exactly that.
    """
    names, weights = tuple(mixture.weights), tuple(mixture.weights.values())
    length = _length(rng, mixture)
    while True:
        skills = rng.choices(names, weights, k=length)
        if length == 1:
            return single(rng, skills[0], split)
        if not any(pair in UNSEEN_PAIRS for pair in pairwise(skills)):
            problem = chain(rng, skills, split)
            if problem is not None:
                return problem
        if split == "pool":
            length = _length(rng, mixture)


def _length(rng: Random, mixture: Mixture) -> int:
    return 1 if rng.random() >= mixture.chain_share else 2 if rng.random() < 0.75 else 3


def mixed(rng: Random, skill: str, split: Split, chain_share: float = 0.2) -> Problem:
    """A question for one skill: mostly alone, for a share chained with a common one before or after it."""
    partners = [name for name in COMMON if name != STUBBORN and name != skill]
    while BY_NAME[skill].chains and rng.random() < chain_share:
        pair = rng.choice([(skill, rng.choice(partners)), (rng.choice(partners), skill)])
        problem = None if pair in UNSEEN_PAIRS else chain(rng, pair, split)
        if problem is not None:
            return problem
    return single(rng, skill, split)


def pool(seed: int, per_skill: Mapping[str, int], chain_share: float = 0.2) -> list[PoolItem]:
    """Distinct questions with solutions from the pool split: `per_skill[skill]` items drawn for each skill.

    A smaller count gives a prefix of a larger one's items.
    """
    items: list[PoolItem] = []
    seen: set[str] = set()
    for skill, count in per_skill.items():
        rng = Random(f"pool:{seed}:{skill}")
        wanted = len(items) + count
        while len(items) < wanted:
            problem = mixed(rng, skill, "pool", chain_share)
            if problem.question not in seen:
                seen.add(problem.question)
                items.append(_pool_item(problem))
    return items


def chains(seed: int, count: int, mixture: Mixture = ORIGINAL) -> list[PoolItem]:
    """Distinct questions of a mixture that chain two or three skills, with solutions, from the pool split. A
    smaller count gives a prefix of a larger one's items."""
    rng, chained = Random(f"chains:{seed}"), Mixture(mixture.weights, 1.0)
    return [_pool_item(problem) for problem in _distinct(count, lambda: draw(rng, chained, "pool"))]


@dataclass(frozen=True)
class HeldOutSizes:
    """Items per evaluation set: of each steady skill, of each other one (its answers waver from round to
    round), of the stubborn one, of the original mixture, and out of distribution.
    """

    steady: int = 50
    wavering: int = 50
    stubborn: int = 50
    mix: int = 200
    ood: int = 120

    def of(self, skill: str) -> int:
        """How many items of one skill."""
        return self.stubborn if skill == STUBBORN else self.steady if skill in STEADY else self.wavering


@cache
def held_out(kind: Literal["gate", "exam"], sizes: HeldOutSizes = HeldOutSizes()) -> tuple[HeldOutItem, ...]:
    """A fixed held-out set: strata `skill:<name>`, `mix:original` and `ood`; smaller sizes give prefixes of
    the larger ones' items.

    Half of `ood` chains pairs that no training data chains, half asks in a word order that none shows.
    """

    def rng(stratum: str) -> Random:
        return Random(f"held-out:{kind}:{stratum}")

    strata = {
        f"skill:{name}": _distinct(sizes.of(name), partial(single, rng(name), name, kind)) for name in SKILLS
    }
    strata["mix:original"] = _distinct(sizes.mix, partial(draw, rng("mix"), ORIGINAL, kind))
    pairs = _distinct(sizes.ood // 2, partial(_unseen_pair, rng("pair"), kind))
    strata["ood"] = pairs + _distinct(sizes.ood - sizes.ood // 2, partial(_unseen_order, rng("order"), kind))
    return tuple(
        held_out_item(problem, kind, stratum) for stratum, problems in strata.items() for problem in problems
    )


def mixture_items(
    kind: Literal["gate", "exam"], name: str, mixture: Mixture, count: int
) -> tuple[HeldOutItem, ...]:
    """Fixed held-out items of stratum `mix:<name>`, drawn from a mixture (a drifted one, say)."""
    rng = Random(f"held-out:{kind}:{name}")
    return tuple(
        held_out_item(problem, kind, f"mix:{name}")
        for problem in _distinct(count, lambda: draw(rng, mixture, kind))
    )


def held_out_item(problem: Problem, kind: str, stratum: str) -> HeldOutItem:
    """A problem as a held-out item with a deterministic id."""
    item_id = f"{kind}-{_digest(stratum + problem.question)}"
    return HeldOutItem(
        item_id=item_id,
        question=problem.question,
        answer=problem.answer,
        skills=problem.skills,
        stratum=stratum,
    )


def _pool_item(problem: Problem) -> PoolItem:
    skills = tuple(dict.fromkeys(problem.skills))
    return PoolItem(
        item_id=f"pool-{_digest(problem.question)}",
        question=problem.question,
        solution=problem.solution,
        answer=problem.answer,
        skills=skills,
    )


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _distinct(count: int, make: Callable[[], Problem]) -> list[Problem]:
    problems: dict[str, Problem] = {}
    while len(problems) < count:
        problem = make()
        problems.setdefault(problem.question, problem)
    return list(problems.values())


def _unseen_pair(rng: Random, split: Split) -> Problem:
    while True:
        problem = chain(rng, rng.choice(sorted(UNSEEN_PAIRS)), split)
        if problem is not None:
            return problem


def _unseen_order(rng: Random, split: Split) -> Problem:
    while True:
        link = _draw_link(rng, rng.choice([skill.name for skill in TABLE if skill.unseen_form]), split, None)
        if link is not None:
            return _problem([replace(link, form=-1)], "then")


def _draw_link(rng: Random, name: str, split: Split, before: Link | None) -> Link | None:
    skill = BY_NAME[name]
    it = None
    if before is not None:
        if not skill.chains or not BY_NAME[before.skill].chains:
            return None
        it = int(work(before).result)
        if not 1 <= it <= _LARGEST_LINK:
            return None
    for _ in range(_TRIES):
        args = skill.draw(rng, it)
        if args is not None and skill.valid(args) and split_of(name, args) == split:
            return Link(name, args, rng.randrange(len(skill.forms)), it is not None)
    return None


def _problem(links: Sequence[Link], order: str) -> Problem:
    solution, answer = solve(links)
    form = "+".join(str(link.form) for link in links) + (f":{order}" if len(links) > 1 else "")
    return Problem(render(links, order), solution, answer, tuple(link.skill for link in links), form)
