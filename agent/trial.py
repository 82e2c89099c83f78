"""Counts of a trial as answers, which `agent.canary` takes one by one.

The profile keeps counts by event-time bucket, the gateways by look: in which order the answers of a bucket
came is not known. They are put into an order drawn by hash: under "not worse" a bucket's answers of both
versions are alike, so any order drawn without regard to the outcome is as good as the true one. Counts that
grow (an answer that is judged late) leave the order of the other answers as it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from agent.canary import Arm, TrialAnswer
from agent.chance import rank
from agent.profile import Counts

Outcomes = Mapping[str, Counts]
"""By outcome: how many answers it is known of, and how many of them were bad."""


def spread(bucket: int, arms: Mapping[Arm, Outcomes]) -> Iterator[TrialAnswer]:
    """The answers that a bucket's counts stand for. Which outcomes belong to one answer is not known either,
    and no test asks.

    >>> answers = list(spread(7, {"canary": {"difficult": Counts(3, 1)}, "champion": {"slow": Counts(2, 0)}}))
    >>> len(answers), sum(answer.bad.get("difficult", False) for answer in answers)
    (5, 1)
    """
    placed: list[tuple[int, TrialAnswer]] = []
    for arm, outcomes in arms.items():
        orders = {name: _order(f"{bucket}/{arm}/{name}", counts) for name, counts in outcomes.items()}
        for number in range(max(map(len, orders.values()), default=0)):
            bad = {name: order[number] for name, order in orders.items() if number < len(order)}
            placed.append((rank(0, "answer", f"{bucket}/{arm}", str(number)), TrialAnswer(arm, bad)))
    yield from (answer for _, answer in sorted(placed, key=lambda pair: pair[0]))


def _order(name: str, counts: Counts) -> list[bool]:
    places = [
        (rank(0, "outcome", name, str(bad), str(number)), bad)
        for bad, count in ((True, counts.missing), (False, counts.needed - counts.missing))
        for number in range(count)
    ]
    return [bad for _, bad in sorted(places)]
