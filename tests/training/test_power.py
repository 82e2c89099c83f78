"""The gate's outlook: the formulas against simulation, and what is said when a gate cannot open."""

from __future__ import annotations

import numpy as np
import pytest

from training.gate import GateSettings
from training.paired import mcnemar_p, tango_p
from training.power import items_needed_for_gain, outlook, power_not_worse, power_of_gain


@pytest.mark.parametrize(
    ("items", "gain", "flips"), [(40, 0.2, 0.1), (150, 0.1, 0.15), (300, 0.1, 0.1), (25, 0.3, 0.05)]
)
def test_power_agrees_with_simulation(items: int, gain: float, flips: float) -> None:
    rng = np.random.default_rng(0)
    counts = rng.multinomial(items, [flips / 2 + gain, flips / 2, 1 - flips - gain], size=2_000)
    passed = np.mean([mcnemar_p(int(gained), int(lost)) <= 0.04 for gained, lost, _ in counts])
    assert power_of_gain(items, gain, flips=flips) == pytest.approx(passed, abs=0.06)


def test_power_not_worse_agrees_with_simulation() -> None:
    rng = np.random.default_rng(1)
    counts = rng.multinomial(600, [0.05, 0.05, 0.9], size=2_000)
    passed = np.mean([tango_p(int(gained), int(lost), 600, 0.05) <= 0.04 for gained, lost, _ in counts])
    assert power_not_worse(600, 0.05) == pytest.approx(passed, abs=0.03)


def test_items_needed_is_the_least_number_with_the_power() -> None:
    for gain in (0.05, 0.1, 0.3):
        items = items_needed_for_gain(gain)
        assert power_of_gain(items - 1, gain) < 0.8 <= power_of_gain(items, gain)
    with pytest.raises(ValueError, match="cannot be proven"):
        items_needed_for_gain(0.0)


def test_the_outlook_says_why_a_gate_cannot_open() -> None:
    items = {"gcd": 12, "add": 300, "mod": 40}
    assert outlook(["add"], items, whole=2_000, gain=0.2).reasons == ()
    assert outlook(["gcd"], items, whole=2_000, gain=0.2).reasons == (
        "target gcd has 12 held-out items, the gate needs 20",
    )
    [gain] = outlook(["mod"], items, whole=2_000, gain=0.1).reasons
    assert gain == "a gain of 10% would be proven in 30% of rounds with 40 items; 143 are needed"
    [whole] = outlook(["mod"], items, whole=400, gain=0.3, settings=GateSettings(whole_margin=0.01)).reasons
    assert whole == "400 held-out items show the whole not worse by 1% in 67% of rounds"
    good = outlook(["add"], items, whole=1_000, gain=0.1)
    assert good.power == pytest.approx(good.gain_power + good.whole_power - 1.05) and good.power > 0.9
    [together] = outlook(["mod"], {"mod": 82}, whole=2_000, gain=0.15).reasons
    assert together == "all its tests together open the gate in 77% of good rounds"
    assert outlook(["new"], {}, whole=0, gain=0.2).whole_power == 0
