"""The two ends of a curation: what to draw and to ask for, and how what came of it becomes the data set of a
round."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from typing_extensions import TypedDict

from agent.budget import Usage
from agent.catalog import SkillMap
from agent.items import Example, PoolItem, Provenance
from agent.replay import plan_replay
from agent.selection import plan_selection
from agent.synthesis import plan_synthesis
from graphs.curate.duplicates import QuestionIndex
from graphs.curate.plan import CurateContext, Curation, CurationPlan, CurationReport, EmptyPool
from graphs.curate.steps import Prompt, Solved
from streams.events import derived_id


class Pick(TypedDict):
    """One pool item, and the skill it was drawn for."""

    item_id: str
    skill: str


@dataclass(frozen=True)
class Found:
    """What the steps of a round have left: drawn items, new questions with agreeing solutions, and the
    counts."""

    picks: Sequence[Pick]
    kept: Sequence[Solved]
    dropped: Mapping[str, int]
    usage: Usage


def picks(plan: CurationPlan, context: CurateContext) -> list[Pick]:
    """Draw the items of the skills that are taught by selection. Raises `EmptyPool` for a skill that no item
    needs."""
    wanted = plan.wanted("select")
    for skill in wanted:
        if not context.skill_map.items(skill):
            raise EmptyPool(skill)
    drawn = plan_selection(wanted, context.skill_map, sum(wanted.values()), plan.seed, context.used_items)
    return [Pick(item_id=one.item_id, skill=one.skill) for one in drawn.picks]


def prompts(plan: CurationPlan, context: CurateContext) -> list[Prompt]:
    """The requests for new questions of the skills that are taught by synthesis."""
    planned = plan_synthesis(plan.wanted("synthesize"), context.skill_map, plan.seed, plan.synthesis)
    return [
        Prompt(at=at, skill=one.skill, references=list(one.references), count=one.count, seed=one.seed)
        for at, one in enumerate(planned.requests)
    ]


def curation(round_id: str, plan: CurationPlan, found: Found, context: CurateContext) -> Curation:
    """The data set: selected, then synthesized, then replayed examples, each once and in an order fixed by
    the plan."""
    dropped = Counter(found.dropped)
    selected = [_selected(context.items[pick["item_id"]], pick["skill"]) for pick in found.picks]
    taught = _once([*selected, *_within_request(_synthesized(found.kept, context), plan, dropped)])
    replayed = _clean(_replayed(taught, plan, context), plan, context, dropped)
    report = CurationReport(
        requested={target.skill: target.examples for target in plan.targets},
        accepted=dict(Counter(str(one.provenance.skill) for one in taught)),
        replay=len(replayed),
        dropped={reason: dropped[reason] for reason in sorted(dropped) if dropped[reason]},
        usage=found.usage,
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


def _selected(item: PoolItem, skill: str) -> Example:
    return example(
        item.question,
        item.solution,
        item.skills,
        Provenance(strategy="select", skill=skill, source_ids=(item.item_id,)),
    )


def _synthesized(kept: Sequence[Solved], context: CurateContext) -> list[Example]:
    """First one solution of every question, then second ones: variety before repetition when a request cuts
    the list."""
    ranked = sorted(
        (rank, one["question"]["at"], one) for one in kept for rank in range(len(one["solutions"]))
    )
    return [_new_example(one, rank, context) for rank, _, one in ranked]


def _new_example(solved: Solved, rank: int, context: CurateContext) -> Example:
    question = solved["question"]
    provenance = Provenance(
        strategy="synthesize",
        skill=question["skill"],
        source_ids=tuple(question["references"]),
        teacher=context.teacher.name,
        prompt_version=context.teacher.prompt_version,
        usage=Usage.model_validate(solved["usage"]) if rank == 0 else Usage(),
    )
    return example(question["text"], solved["solutions"][rank]["text"], (question["skill"],), provenance)


def _within_request(examples: Sequence[Example], plan: CurationPlan, dropped: Counter[str]) -> list[Example]:
    left = Counter(plan.wanted("synthesize"))
    inside: list[Example] = []
    for one in examples:
        skill = str(one.provenance.skill)
        if left[skill] > 0:
            left[skill] -= 1
            inside.append(one)
        else:
            dropped["surplus"] += 1
    return inside


def _replayed(taught: Sequence[Example], plan: CurationPlan, context: CurateContext) -> list[Example]:
    source = context.replay
    original = {one.example_id: one for one in map(_original, source.original)}
    by_skill = SkillMap((known, one.skills) for known, one in original.items())
    original_ids = {skill: by_skill.items(skill) for skill in by_skill.sizes}
    drawn = plan_replay(
        [one.example_id for one in taught], source.reservoir, original_ids, plan.seed, plan.replay
    )
    return [
        *(_again(source.earlier[known]) for known in drawn.earlier),
        *(original[known] for known in drawn.original),
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
    held_out = QuestionIndex(plan.same_question(plan.contamination), context.held_out)
    clean = [one for one in examples if held_out.find(one.prompt) is None]
    dropped["contaminated-replay"] += len(examples) - len(clean)
    return clean


def _once(examples: Sequence[Example]) -> list[Example]:
    return list({one.example_id: one for one in examples}.values())
