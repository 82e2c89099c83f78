"""The held-out set as the gate and the policy see it: the task's own questions, and those that traffic
brought (docs/decisions/0030)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

from agent.items import HeldOutItem
from loop.config import Config
from streams.state.held_out import HeldOutStore, HeldOutVersion, Reserved
from streams.state.store import StateStore
from training.evaluate import SKILL_STRATUM, item_set_sha256
from training.members import items_by_skill

SHOWN = 5


class HeldOutSet:
    """One student's held-out set, in versions that never change: 0 is the task's own questions, `base`."""

    def __init__(self, config: Config, store: StateStore, base: Sequence[HeldOutItem]) -> None:
        self.settings = config.heldout
        self.grows = config.heldout.share > 0 and config.monitor.source == "outputs"
        self._gate = config.gate
        self._store = HeldOutStore(store, config.student.name)
        self._base = tuple(base)
        self._stamp: tuple[int, int] | None = None
        self._counts: Mapping[str, int] = {}

    def of(self, version: int) -> tuple[HeldOutItem, ...]:
        """The questions of a version."""
        grown = self._store.reserved() if version else []
        return (*self._base, *(known.item for known in grown if known.version and known.version <= version))

    def latest(self) -> HeldOutVersion:
        """The newest version."""
        own = HeldOutVersion(0, item_set_sha256(self._base), len(self._base), 0, 0)
        return self._store.latest() or own

    def reserved(self) -> list[Reserved]:
        """What traffic brought, also what waits for the next version."""
        return self._store.reserved()

    def never_trained_on(self) -> list[str]:
        """All questions that belong to the set, or will."""
        return [item.question for item in (*self._base, *(known.item for known in self.reserved()))]

    def counts(self) -> Mapping[str, int]:
        """How many questions of the next version count for each skill, by the gate's rule."""
        stamp = self._store.stamp()
        if stamp != self._stamp:
            grown = [known.item for known in self.reserved()]
            self._counts = items_by_skill([*self._base, *grown], self._gate)
            self._stamp = stamp
        return self._counts

    def recent(self) -> Mapping[str, int]:
        """`counts` without the questions of before a skill's last drift, which cannot show that the student
        learns what is asked now. With a set that does not grow they are all there is, and count."""
        if not self.grows:
            return self.counts()
        outdated = self._store.outdated()
        return {skill: max(n - outdated.get(skill, 0), 0) for skill, n in self.counts().items()}

    def drifted(self, skill: str) -> None:
        """From now on questions of the skill are wanted as if there were none yet. They all stay in the set:
        what the student could do must not be lost."""
        self._store.outdate(skill, self.counts().get(skill, 0))

    def grow(self, admitted: Sequence[HeldOutItem], refused: Sequence[HeldOutItem], answers: int) -> bool:
        """Make the next version of what the latest holds and the `admitted`; the `refused` are put aside.
        False when another process was first."""
        self._store.refuse([item.item_id for item in refused])
        if not admitted:
            return True
        made = self._store.grow(
            admitted, len(self._base), lambda grown: item_set_sha256([*self._base, *grown]), answers
        )
        return made is not None

    def stratum(self, skills: Sequence[str]) -> str | None:
        """Where a new question belongs: to the stratum of its only skill where there is one, else to the
        largest evaluation set. Without any, a question of one skill opens its stratum; None: nowhere.

        A set of its own would be small, and the gate would have to show it not worse by itself.
        """
        own = SKILL_STRATUM + skills[0] if len(skills) == 1 else None
        if own in self._strata:
            return own
        plain = {
            name: count
            for name, count in self._strata.items()
            if not name.startswith(SKILL_STRATUM) and name.split(":")[0] not in self._gate.reported_only
        }
        return max(sorted(plain), key=lambda name: plain[name]) if plain else own

    def measures(self, skills: Iterable[str], stratum: str) -> set[str]:
        """The skills for which a question of this stratum counts."""
        if stratum.startswith(SKILL_STRATUM):
            return {stratum.removeprefix(SKILL_STRATUM)}
        return {skill for skill in skills if SKILL_STRATUM + skill not in self._strata}

    def told(self, skills: Iterable[str]) -> str:
        """The set in words: its version, and which skills lack questions."""
        latest, waiting = self.latest(), sum(known.version is None for known in self.reserved())
        told = f"version {latest.version} ({latest.sha256[:12]}), {latest.items} questions"
        told += f", {latest.grown} of them from traffic; {waiting} wait for the next version"
        names = list(skills)
        if self.settings.share:
            told += f" ({self.settings.share:.0%} of graded traffic is reserved for skills that lack them)"
        for need, wanted in (("to be taught", self._gate.min_items), ("wanted", self.settings.per_skill)):
            few = short_of(names, self.counts(), wanted)
            if few:
                return f"{told}; fewer than {need}: {tell_short(few, wanted)}"
        return told

    @cached_property
    def _strata(self) -> Counter[str]:
        return Counter(item.stratum for item in self._base)


def short_of(skills: Iterable[str], counts: Mapping[str, int], wanted: int) -> dict[str, int]:
    """The skills with fewer than the wanted number of held-out questions, fewest first."""
    few = {skill: counts.get(skill, 0) for skill in skills if counts.get(skill, 0) < wanted}
    return dict(sorted(few.items(), key=lambda pair: (pair[1], pair[0])))


def tell_short(few: Mapping[str, int], wanted: int) -> str:
    """Those skills in words.

    >>> tell_short({"gcd": 0, "max": 12}, 20)
    'gcd 0 of 20, max 12 of 20'
    """
    told = [f"{skill} {count} of {wanted}" for skill, count in few.items()]
    return ", ".join([*told[:SHOWN], *([f"{len(told) - SHOWN} more"] if len(told) > SHOWN else [])])
