"""Is the version on trial worse than the champion? Judged on the same traffic, looked at after every answer.

Testing by betting (Waudby-Smith and Ramdas 2024, "Estimating means of bounded random variables by betting",
JRSS B 86:1-27; Ville 1939): who bets against a hypothesis that is true rarely gets rich.

1. Outcomes are bad (1) or not (0): difficult answers, failed requests, slow ones, misses of each target
   skill. For each of these a block closes when both versions have an answer in it, and d = (canary's mean) -
   (champion's mean) lies in [-1, 1]. Who answers is drawn by session, so under "not worse" d has mean <= 0
   given all that came before, also while the traffic changes.
2. The wealth of a bet b against "not worse" is the product of (1 + b d); a mixture of bets needs no tuning.
   The mean of the wealths over all outcomes is one gambler's: it reaches 1 / `rollback_error` with at most
   that probability, however often anybody looks (Ville's inequality). Then the canary goes back.
3. Against "worse by `margin` or more" the product of (1 + b (margin - d) / (1 + margin)) grows. When it has
   reached 1 / `promote_error` for difficulty, failures, slowness and every target alike, the canary is
   promoted (each must be shown, so there is nothing to correct for). A target that too few answers need to be
   shown in time (`min_needed`) is not waited for; it can still stop the canary, and the gate has judged it.
4. Closed by default: without enough evidence at the end of the time the canary goes back.

Answers of one session are not independent; with many more sessions than answers per session that is small.
A later regression is sought by an e-detector (Shin, Ramdas and Rinaldo 2024, NEJSDS 2:229-260; the form of
Shiryaev and Roberts): a new gambler starts at every answer, and their total reaches `run_length` no sooner
than after `run_length` answers on average while nothing is worse than the reference plus `margin`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import Field

from agent.settings import Settings

Arm = Literal["champion", "canary"]
Outcome = Literal["promote", "roll back", "wait"]
DIFFICULT, FAILED, SLOW = "difficult", "failed", "slow"
MUST_BE_SHOWN = (DIFFICULT, FAILED, SLOW)
BETS = (0.08, 0.2, 0.4, 0.75)
_POOR = 1e-250
_RICH = 1e250


class CanarySettings(Settings):
    """When a canary ends. `rollback_error` is the probability that one no worse is ever sent back,
    `promote_error` that one worse by `margin` is promoted. Answers are the canary's that were judged: fewer
    than `min_answers` promote nothing, and after `max_answers` without evidence it goes back. Targets that
    fewer than `min_needed` of them would need are not waited for. `run_length`: answers between two false
    alarms of a promoted version, on average at least."""

    rollback_error: float = Field(default=0.05, gt=0, lt=1)
    promote_error: float = Field(default=0.05, gt=0, lt=1)
    margin: float = Field(default=0.10, gt=0, lt=0.5)
    min_answers: int = Field(default=50, gt=0)
    max_answers: int = Field(default=8_000, gt=0)
    min_needed: int = Field(default=1_000, gt=0)
    run_length: int = Field(default=100_000, gt=1)


@dataclass(frozen=True, slots=True)
class TrialAnswer:
    """What is known of one answer: `bad` says of each outcome whether it was bad; one that is not known
    (nobody could judge, the skill is not needed) is left out."""

    arm: Arm
    bad: Mapping[str, bool]


class Wealth:
    """A mixture of bets against a hypothesis about a mean; an e-process.

    >>> wealth = Wealth()
    >>> for _ in range(20):
    ...     wealth.bet(1.0)
    >>> wealth.total > 1000
    True
    """

    __slots__ = ("_each", "total")

    def __init__(self) -> None:
        self._each = [1.0 / len(BETS)] * len(BETS)
        self.total = 1.0  # what the gambler has of one unit

    def bet(self, gain: float) -> None:
        """Win or lose: `gain` is in [-1, 1], its mean at most 0 under the hypothesis."""
        if gain:
            self._each = [
                min(_RICH, max(_POOR, each * (1.0 + bet * gain)))
                for each, bet in zip(self._each, BETS, strict=True)
            ]
            self.total = sum(self._each)


@dataclass(slots=True)
class _Comparison:
    """One outcome of both versions: the open block and two gamblers."""

    margin: float
    counts: dict[Arm, list[int]] = field(default_factory=lambda: {"champion": [0, 0], "canary": [0, 0]})
    block: dict[Arm, list[int]] = field(default_factory=lambda: {"champion": [0, 0], "canary": [0, 0]})
    worse: Wealth = field(default_factory=Wealth)
    not_worse: Wealth = field(default_factory=Wealth)

    def take(self, arm: Arm, bad: bool) -> bool:
        """Count an answer; whether it closed a block."""
        for tally in (self.counts[arm], self.block[arm]):
            tally[0] += bad
            tally[1] += 1
        champion, canary = self.block["champion"], self.block["canary"]
        if champion[1] and canary[1]:
            difference = canary[0] / canary[1] - champion[0] / champion[1]
            self.worse.bet(difference)
            self.not_worse.bet((self.margin - difference) / (1.0 + self.margin))
            self.block = {"champion": [0, 0], "canary": [0, 0]}
            return True
        return False


@dataclass(frozen=True)
class OutcomeEvidence:
    """What is known of one outcome: bad and all answers of each version, and the evidence for "worse" and
    for "not worse by the margin" (e-values: 20 is as rare by chance as p = .05)."""

    outcome: str
    champion: tuple[int, int]
    canary: tuple[int, int]
    worse: float
    not_worse: float


@dataclass(frozen=True)
class CanaryVerdict:
    """What to do with a canary now, and why. `evidence` is the e-value of "worse in some outcome"."""

    outcome: Outcome
    reason: str
    evidence: float
    comparisons: tuple[OutcomeEvidence, ...]


class Canary:
    """A canary's trial: `note` its answers and the champion's as they come, look (`decide`, `verdict`) at any
    time. The same answers in the same order give the same verdict, so a trial survives a restart."""

    def __init__(self, settings: CanarySettings, targets: Sequence[str] = ()) -> None:
        self._settings = settings
        names = (*MUST_BE_SHOWN, *(f"miss of {target}" for target in targets))
        self._comparisons = {name: _Comparison(settings.margin) for name in names}
        self._peak = 1.0
        self._worst = ""
        self._answers = 0

    def note(self, answer: TrialAnswer) -> None:
        """Take in one answer. Outcomes that are not on trial are passed over."""
        self._answers += answer.arm == "canary" and DIFFICULT in answer.bad
        closed = False
        for name, bad in answer.bad.items():
            comparison = self._comparisons.get(name)
            if comparison is not None and comparison.take(answer.arm, bad):
                closed = True
        if closed:
            self._look()

    def _look(self) -> None:
        wealths = {name: comparison.worse.total for name, comparison in self._comparisons.items()}
        evidence = sum(wealths.values()) / len(wealths)
        if evidence > self._peak:
            self._peak, self._worst = evidence, max(wealths, key=lambda name: wealths[name])

    def decide(self, expired: bool = False) -> tuple[Outcome, str]:
        """What to do now, and why. `expired`: the time for the trial is over."""
        settings = self._settings
        if self._peak >= 1.0 / settings.rollback_error:
            return "roll back", f"worse: {self._worst}"
        unproven = [
            name
            for name, each in self._comparisons.items()
            if each.not_worse.total < 1.0 / settings.promote_error
            and (name in MUST_BE_SHOWN or self._expected(each) >= settings.min_needed)
        ]
        if not unproven and self._answers >= settings.min_answers:
            return "promote", f"shown to be worse by less than {settings.margin:.0%}"
        lacking = ", ".join(unproven) or "enough answers"
        if expired or self._answers >= settings.max_answers:
            return "roll back", f"not shown in time: {lacking}"
        return "wait", f"not shown yet: {lacking}"

    def _expected(self, comparison: _Comparison) -> float:
        """How many of the canary's answers will have told of an outcome at the end of its time."""
        return comparison.counts["canary"][1] * self._settings.max_answers / max(1, self._answers)

    def verdict(self, expired: bool = False) -> CanaryVerdict:
        """The decision with all that it rests on."""
        outcome, reason = self.decide(expired)
        rows = tuple(
            OutcomeEvidence(
                name,
                (each.counts["champion"][0], each.counts["champion"][1]),
                (each.counts["canary"][0], each.counts["canary"][1]),
                each.worse.total,
                each.not_worse.total,
            )
            for name, each in self._comparisons.items()
        )
        return CanaryVerdict(outcome, reason, self._peak, rows)


class Regression:
    """Has a promoted version become worse than `reference` (its predecessor's rate of bad answers) by more
    than the margin? `note` says so, at each answer.

    >>> regression = Regression(CanarySettings(), reference=0.2)
    >>> any(regression.note(False) for _ in range(1000)), any(regression.note(True) for _ in range(40))
    (False, True)
    """

    def __init__(self, settings: CanarySettings, reference: float) -> None:
        self._bound = min(1.0, reference + settings.margin)
        self._threshold = float(settings.run_length)
        self._each = [0.0] * len(BETS)

    @property
    def total(self) -> float:
        """What the gamblers have together; an alarm at `run_length`."""
        return sum(self._each)

    def note(self, bad: bool) -> bool:
        """Take in one answer; whether there is an alarm."""
        gain = float(bad) - self._bound
        self._each = [
            min(_RICH, (each + 1.0 / len(BETS)) * (1.0 + bet * gain))
            for each, bet in zip(self._each, BETS, strict=True)
        ]
        return self.total >= self._threshold
