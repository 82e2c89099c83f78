"""What the policy is given and what it answers: frozen values, stored with each decision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import not_
from typing import Literal

from pydantic import Field, model_validator

from agent.budget import BudgetState
from agent.items import Frozen
from agent.posterior import Profile
from agent.settings import Settings

Kind = Literal["wait", "select", "synthesize", "mix"]
Teaching = Literal["select", "synthesize"]
Outcome = Literal["active", "promoted", "rejected", "failed"]


class SkillTarget(Frozen):
    """One skill of a round: its weight (the weights of a round add up to 1) and how many distinct examples it
    gets."""

    skill: str
    weight: float = Field(gt=0, le=1)
    examples: int = Field(ge=1)
    strategy: Teaching


class Decision(Frozen):
    """What to do next, and why.

    `examples` counts distinct target examples, replay not included; `steps` are optimizer steps. `reasons`
    are sentences with the numbers behind them: first what decided, then one for each skill that was passed
    over. A `reinforced` round trains by GRPO (`training.grpo`) instead of supervision. `waits_since`: where
    all that is waited for is other skills' evidence, the total of answers when that began.
    """

    kind: Kind
    skills: tuple[SkillTarget, ...] = ()
    examples: int = 0
    steps: int = 0
    reasons: tuple[str, ...]
    reinforced: bool = Field(default=False, exclude_if=not_)
    waits_since: int | None = Field(default=None, exclude_if=lambda since: since is None)


class PoolState(Frozen):
    """The pool of one skill: distinct items that may be trained on, and how many of them earlier rounds
    used."""

    available: int = Field(ge=0)
    used: int = Field(default=0, ge=0)

    @property
    def unused(self) -> int:
        """Items no round has used yet."""
        return max(self.available - self.used, 0)


class RoundRecord(Frozen):
    """One earlier round of the student.

    `decided_at_answers` is the student's total of watched answers (all versions) when the round ended, or
    when it was decided while it is active. `gains` is the change of held-out accuracy per skill (0.05: five
    points), where it was measured. `strategies` is needed for a mixed round only. `error` is a failed one's
    reason.
    """

    round_id: str
    kind: Literal["select", "synthesize", "mix"]
    skills: tuple[str, ...]
    outcome: Outcome
    decided_at_answers: int = Field(ge=0)
    gains: Mapping[str, float] = Field(default_factory=dict)
    steps: int = Field(default=0, ge=0)
    strategies: Mapping[str, Teaching] = Field(default_factory=dict)
    error: str = ""
    reinforced: bool = False

    @model_validator(mode="after")
    def _mix_says_which(self) -> RoundRecord:
        if self.kind == "mix" and set(self.strategies) != set(self.skills):
            raise ValueError(f"round {self.round_id} is a mix: strategies must name each of {self.skills}")
        return self

    def strategy_of(self, skill: str) -> Teaching | None:
        """How the round taught `skill`; None when it did not."""
        if skill not in self.skills:
            return None
        return self.strategies[skill] if self.kind == "mix" else self.kind


class PolicySettings(Settings):
    """The policy's numbers; the reasons for the defaults are in docs/decisions/0003-policy-defaults.md.

    `reinforce`: a skill at its ceiling (a synthesis round without gain) gets one round of GRPO, of
    `reinforced_steps` steps, before it is put aside.
    """

    min_answers: int = Field(default=600, ge=1)
    min_needed: int = Field(default=20, ge=1)
    miss_threshold: float = Field(default=0.25, gt=0, lt=1)
    min_share: float = Field(default=0.01, ge=0, le=1)
    max_skills: int = Field(default=2, ge=1)
    cooldown_answers: int = Field(default=400, ge=0)
    rejected_cooldown_factor: float = Field(default=2.0, ge=1)
    min_pool: int = Field(default=300, ge=1)
    max_passes: float = Field(default=5.0, gt=0)
    examples_per_skill: int = Field(default=300, ge=1)
    base_steps: int = Field(default=80, ge=0)
    steps_per_skill: int = Field(default=80, ge=1)
    min_steps: int = Field(default=80, ge=1)
    max_steps: int = Field(default=640, ge=1)
    examples_per_step: int = Field(default=32, ge=1)
    replay_share: float = Field(default=0.5, ge=0, lt=1)
    min_gain: float = Field(default=0.03, ge=0)
    ceiling_expires_answers: int = Field(default=5_000, ge=1)
    max_failures: int = Field(default=3, ge=1)
    min_held_out: int = Field(default=20, ge=0)
    allow_mix: bool = False
    reinforce: bool = False
    reinforced_steps: int = Field(default=60, ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> PolicySettings:
        if self.min_steps > self.max_steps:
            raise ValueError(f"min_steps {self.min_steps} exceeds max_steps {self.max_steps}")
        return self


@dataclass(frozen=True, slots=True)
class PolicyInput:
    """Everything a decision depends on.

    `answers_watched` counts diagnosed answers of the profile's version, `answers_total` those of all versions
    of the student: the policy's clock. `history` is in order of time, oldest first. A skill without a pool
    has none. `held_out` counts the gate's items by skill; None: unknown, and no reason to wait.
    `held_out_grows`: traffic adds to them. `waits_since`: that of the version's last decision that had one.
    """

    profile: Profile
    answers_watched: int
    answers_total: int
    pools: Mapping[str, PoolState] = field(default_factory=dict)
    history: Sequence[RoundRecord] = ()
    budget: BudgetState = field(default_factory=BudgetState)
    held_out: Mapping[str, int] | None = None
    held_out_grows: bool = False
    waits_since: int | None = None
