"""What the gate can open for, before a round is bought: how surely a gain of a given size would be proven,
and with how many items.

>>> outlook(["gcd"], {"gcd": 12, "add": 900}, whole=1000, gain=0.2).reasons
('target gcd has 12 held-out items, the gate needs 20',)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist

from pydantic import BaseModel, ConfigDict

from training.gate import GateSettings
from training.paired import constrained_loss_rate

_NORMAL = NormalDist()
ENOUGH = 0.8
"""Power below which a round is not worth its price: the convention of trial planning."""
FLIPS = 0.10
"""Share of items that change, either way, between two equal students; 5 to 15 % were seen."""


class Outlook(BaseModel):
    """Whether the gate could open for a round that gains what is hoped for and harms nothing.

    `power`: least chance that it opens, the errors of all tests added up (as Schultzberg, Ankargren and
    Frånberg 2024 correct power for the number of guardrails). `gain_power` and `whole_power`: chances of
    proving the gain, and that the whole is not worse. `gain_items`: held-out items of the targets together
    for `ENOUGH` power. `reasons`: why the gate cannot be expected to open; empty when it can.
    """

    model_config = ConfigDict(frozen=True)

    power: float
    gain_power: float
    whole_power: float
    gain_items: int
    reasons: tuple[str, ...] = ()


def outlook(
    targets: Sequence[str],
    items: Mapping[str, int],
    whole: int,
    gain: float,
    settings: GateSettings | None = None,
    flips: float = FLIPS,
) -> Outlook:
    """The gate's chances with `items` held-out items by skill and `whole` in all, if the targets gain `gain`
    (a share, .2: 20 points).
    """
    chosen, pooled = settings or GateSettings(), sum(items.get(skill, 0) for skill in targets)
    gain_power = power_of_gain(pooled, gain, chosen.alpha, flips)
    whole_power = power_not_worse(
        whole, chosen.whole_margin, chosen.alpha, flips, gain * min(pooled, whole) / max(whole, 1)
    )
    needed = items_needed_for_gain(gain, chosen.alpha, flips)
    reasons = [
        f"target {skill} has {items.get(skill, 0)} held-out items, the gate needs {chosen.min_items}"
        for skill in targets
        if items.get(skill, 0) < chosen.min_items
    ]
    if not reasons and gain_power < ENOUGH:
        reasons.append(
            f"a gain of {gain:.0%} would be proven in {gain_power:.0%} of rounds with {pooled} items; "
            f"{needed} are needed"
        )
    if whole_power < ENOUGH:
        reasons.append(
            f"{whole} held-out items show the whole not worse by {chosen.whole_margin:.0%} "
            f"in {whole_power:.0%} of rounds"
        )
    power = max(0.0, gain_power + whole_power - 1 - chosen.harm_rate)
    if not reasons and power < ENOUGH:
        reasons.append(f"all its tests together open the gate in {power:.0%} of good rounds")
    return Outlook(
        power=power, gain_power=gain_power, whole_power=whole_power, gain_items=needed, reasons=tuple(reasons)
    )


def power_of_gain(items: int, gain: float, alpha: float = 0.04, flips: float = FLIPS) -> float:
    """Chance that `mcnemar_p <= alpha` when the students flip on a share `flips` of the items and one gains
    `gain` besides.

    >>> round(power_of_gain(200, 0.1), 2), power_of_gain(0, 0.1)
    (0.91, 0.0)
    """
    if items <= 0:
        return 0.0
    moving = flips + gain
    reach = gain * items - 0.5 - _NORMAL.inv_cdf(1 - alpha) * math.sqrt(items * moving)
    return _NORMAL.cdf(reach / math.sqrt(max(items * (moving - gain**2), 1e-12)))


def items_needed_for_gain(
    gain: float, alpha: float = 0.04, flips: float = FLIPS, power: float = ENOUGH
) -> int:
    """Fewest items of the targets together with which a gain is proven with that power. Raises `ValueError`
    for a gain of 0 or less.

    >>> items_needed_for_gain(0.1), items_needed_for_gain(0.3)
    (143, 31)
    """
    if gain <= 0:
        raise ValueError(f"a gain of {gain:.0%} cannot be proven with any number of items")
    low, high = 0, 1
    while power_of_gain(high, gain, alpha, flips) < power:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power_of_gain(middle, gain, alpha, flips) >= power else (middle, high)
    return high


def power_not_worse(
    items: int, margin: float, alpha: float = 0.04, flips: float = FLIPS, change: float = 0.0
) -> float:
    """Chance that `tango_p <= alpha` at the margin when the true change is `change`.

    >>> round(power_not_worse(1000, 0.05), 3)
    0.999
    """
    if items <= 0:
        return 0.0
    gained, lost = flips / 2 + max(change, 0.0), flips / 2 + max(-change, 0.0)
    rate = float(constrained_loss_rate(gained, lost, 1.0, -margin))
    under_null = math.sqrt(items * (2 * rate - margin * (1 + margin)))
    reach = (change + margin) * items - _NORMAL.inv_cdf(1 - alpha) * under_null
    return _NORMAL.cdf(reach / math.sqrt(max(items * (gained + lost - change**2), 1e-12)))
