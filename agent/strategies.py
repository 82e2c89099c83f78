"""Which data a round is made of: STAT-Sel, STAT-Syn, the paper's baselines and the controls it lacks, all of
one interface.

A strategy plans and does nothing else: given the pool, its skill map and the student's failures, it names
pool questions to be answered (`Draw`) and new questions to be asked for (`WriteRequest`). `choose_pairs` then
picks the question-answer pairs of the data set (paper section 3.3, arXiv 2510.10023: 9.5k of them). Every
choice depends on the seed and on ids only.

The controls share the targets of STAT-Sel in number: for every (difficult question, missing skill) they draw
`k_sel` questions too, only elsewhere. `docs/decisions/0020-strategies-and-controls.md` says why each is built
the way it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from agent.catalog import SkillMap
from agent.chance import ordered, rank
from agent.decision import SkillTarget
from agent.plan import (
    DataPlan,
    Draw,
    Failure,
    PlanInput,
    Request,
    StrategyError,
    StrategyName,
    StrategySettings,
    WriteRequest,
    failures_by_skill,
)
from agent.selection import plan_selection, select_offline
from agent.synthesis import plan_synthesis
from agent.table import Table

ORIGINAL = "original"


Planner = Callable[[PlanInput, StrategySettings], DataPlan]


def plan_strategy(
    name: StrategyName, given: PlanInput, settings: StrategySettings = StrategySettings()
) -> DataPlan:
    """The plan of the strategy called `name`.

    Raises
    ------
    StrategyError
        When the strategy needs something that `given` lacks: failures, levels, neighbours or pool items.

    Examples
    --------
    >>> from agent.catalog import SkillMap
    >>> pool = SkillMap([(f"q{i}", ("add",)) for i in range(9)])
    >>> failures = [Failure(question_id="v1", needed=("add",), missing=("add",))]
    >>> given = PlanInput(pool, [f"q{i}" for i in range(9)], failures, seed=0)
    >>> [(name, len(plan_strategy(name, given).draws)) for name in ("stat-sel", "random", "original")]
    [('stat-sel', 5), ('random', 5), ('original', 9)]
    """
    if not given.item_ids:
        raise StrategyError("the pool is empty; give training questions in [data] train")
    return STRATEGIES.choose(name)(given, settings)


def plan_targets(
    targets: Sequence[SkillTarget],
    skill_map: SkillMap,
    seed: int,
    used: Mapping[str, int] | None = None,
    settings: StrategySettings = StrategySettings(),
) -> DataPlan:
    """The policy's own plan: for each skill of its decision so many examples, drawn from the pool or asked
    for. `used` counts earlier rounds by item.

    Raises
    ------
    StrategyError
        When the pool has no question for a skill that is to be taught from it.

    Examples
    --------
    >>> targets = [SkillTarget(skill="add", weight=1.0, examples=3, strategy="select")]
    >>> plan = plan_targets(targets, SkillMap([(f"q{i}", ("add",)) for i in range(9)]), seed=0)
    >>> len(plan.draws), len(plan.requests), plan.sizes
    (3, 0, {'add': 3})
    """
    drawn = {target.skill: target.examples for target in targets if target.strategy == "select"}
    asked = {target.skill: target.examples for target in targets if target.strategy == "synthesize"}
    for skill in drawn:
        if not skill_map.items(skill):
            raise StrategyError(
                f"the pool has no question that needs {skill!r}: label pool items with it, or leave the skill"
                " out of the round"
            )
    picked = plan_selection(drawn, skill_map, sum(drawn.values()), seed, used)
    return DataPlan(
        draws=tuple(Draw(pick.item_id, pick.skill, None, "") for pick in picked.picks),
        requests=tuple(
            Request(write, None, "") for write in plan_synthesis(asked, skill_map, seed, settings)
        ),
        sizes={target.skill: target.examples for target in targets},
    )


def needs_neighbours(name: StrategyName) -> bool:
    """Whether the strategy needs `PlanInput.nearest`."""
    return name in {"embed-sel", "embed-syn"}


def _targeted(
    given: PlanInput, settings: StrategySettings, failures: Sequence[Failure], part: str
) -> DataPlan:
    """`k_sel` draws for each (difficult question, skill) of `failures`; the question itself is never
    drawn."""
    picked = select_offline(
        [(one.question_id, one.missing) for one in failures],
        given.skill_map,
        None,
        given.seed,
        settings.k_sel,
    )
    draws = tuple(Draw(pick.item_id, pick.skill, pick.cause, part) for pick in picked.picks)
    counts = failures_by_skill(failures)
    return _answered(
        draws, settings, {skill: counts[skill] for skill, pool in picked.pools.items() if not pool.pool}
    )


def _answered(
    draws: tuple[Draw, ...], settings: StrategySettings, empty: Mapping[str, int] | None = None
) -> DataPlan:
    answers = settings.answers if settings.rewrite else 1
    return DataPlan(draws, answers=answers, rewritten=settings.rewrite, empty_skills=empty or {})


def _failures(given: PlanInput) -> Sequence[Failure]:
    if not any(one.missing for one in given.failures):
        raise StrategyError(
            "there are no difficult questions with missing skills; check the stages assessed and diagnoses"
        )
    return given.failures


def _stat_sel(given: PlanInput, settings: StrategySettings) -> DataPlan:
    return _targeted(given, settings, _failures(given), "stat-sel")


def _stat_syn(given: PlanInput, settings: StrategySettings) -> DataPlan:
    requests: list[Request] = []
    empty: Counter[str] = Counter()
    for failure in _failures(given):
        for skill in dict.fromkeys(failure.missing):
            others = [item for item in given.skill_map.items(skill) if item != failure.question_id]
            if not others:
                empty[skill] += 1
            for number in range(settings.prompts):
                drawn = ordered(others, given.seed, "reference", skill, failure.question_id, str(number))
                requests.append(
                    _request(
                        given,
                        settings,
                        skill,
                        tuple(drawn[: settings.references]),
                        failure.question_id,
                        number,
                    )
                )
    return DataPlan(requests=tuple(requests), empty_skills=dict(empty))


def _request(
    given: PlanInput,
    settings: StrategySettings,
    skill: str,
    references: tuple[str, ...],
    cause: str,
    number: int,
) -> Request:
    own_seed = rank(given.seed, "write", skill, cause, str(number)) % 2**31
    write = WriteRequest(
        f"{cause}/{skill}/{given.seed}/{number}", skill, references, settings.questions, own_seed
    )
    return Request(write, cause, "new")


def _all_of(items: Iterable[str], part: str) -> tuple[Draw, ...]:
    return tuple(Draw(item, None, None, part) for item in items)


def _original(given: PlanInput, settings: StrategySettings) -> DataPlan:
    return DataPlan(_all_of(given.item_ids, ORIGINAL))


def _augment(given: PlanInput, settings: StrategySettings) -> DataPlan:
    return _answered(_all_of(given.item_ids, "augment"), settings)


def _hard(given: PlanInput, settings: StrategySettings) -> DataPlan:
    hard = [item for item in given.item_ids if given.levels.get(item) in settings.hard_levels]
    if not hard:
        raise StrategyError(
            f"no pool question has a level in {settings.hard_levels}; "
            "the strategy 'hard' needs the field level"
        )
    return _answered(_all_of(hard, "hard"), settings)


def _neighbours(given: PlanInput, failure: Failure) -> Sequence[str]:
    found = given.nearest.get(failure.question_id)
    if not found:
        raise StrategyError(
            f"no nearest pool questions of {failure.question_id!r} were computed; "
            "the embed- strategies need them"
        )
    return [item for item in found if item != failure.question_id]


def _embed_sel(given: PlanInput, settings: StrategySettings) -> DataPlan:
    draws = [
        Draw(item, None, failure.question_id, "embed-sel")
        for failure in _failures(given)
        for item in _neighbours(given, failure)[: settings.k_embed]
    ]
    return _answered(tuple(draws), settings)


def _embed_syn(given: PlanInput, settings: StrategySettings) -> DataPlan:
    """As many new questions as STAT-Syn asks for, like the nearest questions; the teacher is told no
    skill."""
    requests = []
    for failure in _failures(given):
        near = _neighbours(given, failure)
        for number in range(settings.prompts * len(set(failure.missing))):
            start = number * settings.references % max(1, len(near) - settings.references + 1)
            references = tuple(near[start : start + settings.references])
            requests.append(_request(given, settings, "", references, failure.question_id, number))
    return DataPlan(requests=tuple(requests))


def _random_draws(given: PlanInput, settings: StrategySettings) -> tuple[Draw, ...]:
    """As many draws as STAT-Sel, from the whole pool: `k_sel` without repetition for each (difficult
    question, skill)."""
    targeted = Counter(
        (draw.cause, draw.skill) for draw in _targeted(given, settings, _failures(given), "count").draws
    )
    draws: list[Draw] = []
    for (cause, skill), count in sorted(
        targeted.items(), key=lambda pair: (pair[0][0] or "", pair[0][1] or "")
    ):
        others = (
            item
            for item in ordered(given.item_ids, given.seed, "random", cause or "", skill or "")
            if item != cause
        )
        draws += [Draw(item, None, cause, "random") for _, item in zip(range(count), others, strict=False)]
    return tuple(draws)


def _random(given: PlanInput, settings: StrategySettings) -> DataPlan:
    return _answered(_random_draws(given, settings), settings)


def _question_skill(given: PlanInput, settings: StrategySettings) -> DataPlan:
    """As many skills for each difficult question as are missing, but taken from all it needs, whether missing
    or not."""
    asked = [
        one.model_copy(
            update={
                "missing": tuple(
                    ordered(one.needed, given.seed, "needed", one.question_id)[: len(set(one.missing))]
                )
            }
        )
        for one in _failures(given)
    ]
    return _targeted(given, settings, asked, "question-skill")


def _shuffled(given: PlanInput, settings: StrategySettings) -> DataPlan:
    """The same profile with the names of its skills permuted: as peaked as the true one, and aimed
    elsewhere."""
    missing = [skill for skill in failures_by_skill(_failures(given)) if given.skill_map.items(skill)]
    turned = shuffled_names(missing, list(given.skill_map.sizes), given.seed)
    aimed = [
        one.model_copy(
            update={
                "missing": tuple(turned[skill] for skill in dict.fromkeys(one.missing) if skill in turned)
            }
        )
        for one in given.failures
    ]
    return _targeted(given, settings, aimed, "shuffled")


def shuffled_names(missing: Sequence[str], skills: Sequence[str], seed: int) -> Mapping[str, str]:
    """A random one-to-one map from `missing` into `skills` (which hold them) that leaves no name where it
    was.

    >>> turned = shuffled_names(["a", "b"], ["a", "b", "c"], seed=0)
    >>> sorted(turned), len(set(turned.values())), any(old == new for old, new in turned.items())
    (['a', 'b'], 2, False)
    """
    if len(skills) < 2:
        raise StrategyError("the pool has fewer than two skills; there is nothing to shuffle")
    circle = ordered(skills, seed, "shuffle")
    after = dict(zip(circle, [*circle[1:], circle[0]], strict=True))
    return {skill: after[skill] for skill in missing}


def _mix(given: PlanInput, settings: StrategySettings) -> DataPlan:
    """`share` of the pairs as STAT-Sel, the rest at random."""
    targeted = _stat_sel(given, settings)
    aimed = round(settings.pairs * settings.share)
    draws = (*targeted.draws, *_random_draws(given, settings))
    return DataPlan(
        draws,
        answers=targeted.answers,
        rewritten=targeted.rewritten,
        quotas={"stat-sel": aimed, "random": settings.pairs - aimed},
        empty_skills=targeted.empty_skills,
    )


STRATEGIES: Table[Planner] = Table(
    "strategy",
    {
        "stat-sel": _stat_sel,
        "stat-syn": _stat_syn,
        "original": _original,
        "augment": _augment,
        "hard": _hard,
        "embed-sel": _embed_sel,
        "embed-syn": _embed_syn,
        "random": _random,
        "question-skill": _question_skill,
        "shuffled": _shuffled,
        "mix": _mix,
    },
)
