"""What the gate said of a round, as it is kept (training/gate.py decides)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from agent.items import Frozen

Kind = Literal[
    "targets", "target", "skill", "protected", "pair", "several", "stratum", "reported", "whole", "rest"
]

PAIRED = " + "
"""Between the skills of a pair, in a row's name."""


class Row(Frozen):
    """One line of the verdict's table: the challenger beside `against`, on the items that both decided.

    `p_value`: of the gain for kind "targets", else of "not worse by the margin". `harm`: adjusted p-value of
    a loss. `passed` None: not tested. `lower_bound`: one-sided, of challenger - other. `gained` and `lost`
    are fractions when answers were sampled.
    """

    name: str
    kind: Kind
    items: int
    champion: float
    challenger: float
    gained: float
    lost: float
    p_value: float
    lower_bound: float
    passed: bool | None
    harm: float | None = None
    against: str = "champion"

    def harmed(self, rate: float) -> bool:
        """Whether a loss was found, at this rate of the search for harm."""
        return self.harm is not None and self.harm <= rate


class GateVerdict(Frozen):
    """The decision, why, and the table behind it. `reasons` is never empty."""

    promote: bool
    reasons: tuple[str, ...] = Field(min_length=1)
    table: tuple[Row, ...] = ()
