"""The two ends of a curation: which calls a data plan comes to, and how what came of them becomes the data
set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from typing_extensions import TypedDict

from agent.budget import Usage
from agent.catalog import SkillMap
from agent.chance import rank
from agent.items import Example, PoolItem, Provenance
from agent.plan import Draw, choose_pairs
from agent.replay import plan_replay
from graphs.curate.duplicates import QuestionIndex, repeats, untouchable
from graphs.curate.plan import CurateContext, Curation, CurationPlan, CurationReport
from graphs.curate.steps import Reply, TeacherCall
from streams.events import derived_id


class Question(TypedDict):
    """A new question and the place of its request in the plan."""

    text: str
    request: int


@dataclass(frozen=True)
class Gathered:
    """What the steps have left: drawn items, rewritten solutions by item, new questions with the solutions
    that agree, and the counts."""

    items: Sequence[str]
    rewritten: Mapping[str, Reply]
    questions: Sequence[Question]
    solved: Sequence[Reply]
    dropped: Mapping[str, int]
    usage: Usage


@dataclass(frozen=True)
class Sieve:
    """Keeps untouchable questions and repeats out. A contaminated question uses up no place: its clean
    neighbour may stay."""

    untouchable: QuestionIndex
    seen: QuestionIndex
    dropped: Counter[str]

    def passes(self, question: str) -> bool:
        """Whether a question is clean and new; it is not new a second time."""
        contaminated = self.untouchable.find(question)
        repeat = None if contaminated else self.seen.find(question)
        if contaminated or repeat:
            self.dropped[f"contaminated-{contaminated}" if contaminated else f"duplicate-{repeat}"] += 1
            return False
        self.seen.add(question)
        return True


def sift(
    plan: CurationPlan, written: Sequence[Reply], context: CurateContext, dropped: Counter[str]
) -> tuple[list[str], list[Question]]:
    """The drawn items and the new questions that may be taught. Drawn ones are compared with each other, new
    ones also with the pool and with all that was written before."""
    sieve = Sieve(untouchable(plan.duplicates, context.held_out), repeats(plan.duplicates), dropped)
    drawn = sorted({draw.item_id for draw in plan.data.draws})
    known = [item_id for item_id in drawn if item_id in context.items]
    dropped["without solution"] += len(drawn) - len(known)
    items = [item_id for item_id in known if sieve.passes(context.items[item_id].question)]
    dropped["writing failed"] += sum(not reply["texts"] for reply in written)
    texts = [
        Question(text=text, request=reply["at"])
        for reply in sorted(written, key=lambda reply: reply["at"])
        for text in reply["texts"]
    ]
    before = [*(item.question for item in context.pool), *context.used_questions] if texts else []
    fresh = replace(sieve, seen=repeats(plan.duplicates, before))
    return items, [question for question in texts if fresh.passes(question["text"])]


def write_calls(plan: CurationPlan) -> list[TeacherCall]:
    """The calls for new questions, in the order of their requests."""
    writes = [request.write for request in plan.data.requests]
    return [
        TeacherCall(
            at=at, text=write.skill, references=list(write.references), count=write.count, seed=write.seed
        )
        for at, write in enumerate(writes)
    ]


def rewrite_calls(plan: CurationPlan, items: Sequence[str]) -> list[TeacherCall]:
    """One call for every drawn item whose solution is to be rewritten, for as many solutions as it has
    places."""
    places = _draws_by_item(plan, items) if plan.data.rewritten else {}
    return [
        _ask(at, item_id, len(places[item_id]), rank(plan.seed, "rewrite", item_id))
        for at, item_id in enumerate(sorted(places))
    ]


def solve_calls(plan: CurationPlan, questions: Sequence[Question]) -> list[TeacherCall]:
    """One call for every new question. The seed depends on the text, not on its place."""
    return [
        _ask(at, question["text"], plan.strategy.solutions, rank(plan.seed, "solve", question["text"]))
        for at, question in enumerate(questions)
    ]


def _ask(at: int, text: str, count: int, chance: int) -> TeacherCall:
    return TeacherCall(at=at, text=text, references=[], count=count, seed=chance % 2**31)


def curation(round_id: str, plan: CurationPlan, gathered: Gathered, context: CurateContext) -> Curation:
    """The data set: drawn, then new, then replayed examples, each once and in an order fixed by the plan."""
    dropped = Counter(gathered.dropped)
    drawn = _drawn(plan, gathered, context)
    taught = _once([*drawn, *_within(plan, len(drawn), _written(plan, gathered, context), dropped)])
    replayed = _clean(_replayed(taught, plan, context), plan, context, dropped) if taught else []
    report = CurationReport(
        requested=plan.data.sizes,
        accepted=dict(Counter(pair.provenance.skill or pair.provenance.part for pair in taught)),
        replay=len(replayed),
        dropped={reason: dropped[reason] for reason in sorted(dropped) if dropped[reason]},
        usage=gathered.usage,
    )
    return Curation(round_id=round_id, examples=(*taught, *replayed), report=report)


def example(prompt: str, completion: str, skills: tuple[str, ...], provenance: Provenance) -> Example:
    """An example whose id follows from its text: the same pair has the same id in every round."""
    return Example(
        example_id=derived_id(prompt, f"example/{completion}"),
        prompt=prompt,
        completion=completion,
        skills=skills,
        provenance=provenance,
    )


def _draws_by_item(plan: CurationPlan, items: Sequence[str]) -> dict[str, list[Draw]]:
    """The draws that got a place in the data set."""
    places: dict[str, list[Draw]] = {}
    for pair in choose_pairs(plan.data, plan.pairs, plan.seed, set(items).__contains__):
        places.setdefault(pair.draw.item_id, []).append(pair.draw)
    return places


def _drawn(plan: CurationPlan, gathered: Gathered, context: CurateContext) -> list[Example]:
    """Drawn items with their solutions. Where fewer were rewritten than an item has places, its own takes one
    of them."""
    examples: list[Example] = []
    for item_id, draws in _draws_by_item(plan, gathered.items).items():
        item, reply = context.items[item_id], gathered.rewritten.get(item_id)
        texts = reply["texts"] if reply else []
        usage = Usage.model_validate(reply["usage"]) if reply else Usage()
        for draw, text in zip(draws, texts, strict=False):
            where = _origin("select", draw, (item_id,), context, usage)
            examples.append(example(item.question, text, item.skills, where))
            usage = Usage()
        if len(texts) < len(draws):
            where = _origin("select", draws[len(texts)], (item_id,))
            examples.append(example(item.question, item.solution, item.skills, where))
    return examples


def _origin(
    strategy: Literal["select", "synthesize"],
    draw: Draw,
    source_ids: tuple[str, ...],
    by: CurateContext | None = None,
    usage: Usage = Usage(),
) -> Provenance:
    """Where an example comes from; `by`: its text is the teacher's."""
    return Provenance(
        strategy=strategy,
        skill=draw.skill,
        source_ids=source_ids,
        teacher=by.teacher.name if by else None,
        prompt_version=by.teacher.prompt_version if by else None,
        usage=usage,
        part=draw.part,
        cause=draw.cause,
    )


def _written(plan: CurationPlan, gathered: Gathered, context: CurateContext) -> list[Example]:
    """First one solution of every question, then second ones: variety before repetition when the list is
    cut. With a bound on the pairs, chance decides among questions."""
    ranked = sorted(
        (place, rank(plan.seed, "cut", reply["text"]) if plan.pairs else 0, reply["at"], text, reply)
        for reply in gathered.solved
        for place, text in enumerate(reply["texts"])
    )
    examples = []
    for place, _, at, text, reply in ranked:
        request = plan.data.requests[gathered.questions[at]["request"]]
        skill = request.write.skill
        draw = Draw("", skill or None, request.cause, request.part)
        usage = Usage.model_validate(reply["usage"]) if place == 0 else Usage()
        where = _origin("synthesize", draw, request.write.references, context, usage)
        examples.append(example(reply["text"], text, (skill,) if skill else (), where))
    return examples


def _within(
    plan: CurationPlan, drawn: int, written: Sequence[Example], dropped: Counter[str]
) -> list[Example]:
    """The new examples within what each skill was asked for, and within the bound on the pairs."""
    left = Counter(plan.data.sizes)
    room = len(written) if plan.pairs is None else plan.pairs - drawn
    inside: list[Example] = []
    for pair in written:
        skill = str(pair.provenance.skill)
        if len(inside) < room and (not plan.data.sizes or left[skill] > 0):
            left[skill] -= 1
            inside.append(pair)
    dropped["surplus"] += len(written) - len(inside)
    return inside


def _replayed(taught: Sequence[Example], plan: CurationPlan, context: CurateContext) -> list[Example]:
    source = context.replay
    original = {pair.example_id: pair for pair in map(_original, source.original)}
    skill_map = SkillMap((example_id, pair.skills) for example_id, pair in original.items())
    drawn = plan_replay(
        [pair.example_id for pair in taught], source.reservoir, skill_map, plan.seed, plan.replay
    )
    return [
        *(_again(source.earlier[example_id]) for example_id in drawn.earlier),
        *(original[example_id] for example_id in drawn.original),
    ]


def _original(item: PoolItem) -> Example:
    return example(
        item.question,
        item.solution,
        item.skills,
        Provenance(strategy="replay", skill=None, source_ids=(item.item_id,)),
    )


def _again(earlier: Example) -> Example:
    known = {"strategy": "replay", "source_ids": (earlier.example_id,), "usage": Usage()}
    return earlier.model_copy(update={"provenance": earlier.provenance.model_copy(update=known)})


def _clean(
    examples: Sequence[Example], plan: CurationPlan, context: CurateContext, dropped: Counter[str]
) -> list[Example]:
    """Replay was clean when it was made, but held-out questions may have been added since."""
    held_out = untouchable(plan.duplicates, context.held_out)
    clean = [pair for pair in examples if held_out.find(pair.prompt) is None]
    dropped["contaminated-replay"] += len(examples) - len(clean)
    return clean


def _once(examples: Sequence[Example]) -> list[Example]:
    return list({pair.example_id: pair for pair in examples}.values())
