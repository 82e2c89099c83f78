"""How the examples of one optimizer step are divided: over the processes that share it, and into
micro-batches that a device can hold.

The loss of a step is the sum over its tokens divided by their number, so the division changes neither loss
nor gradient. Short examples go together and long ones alone, which leaves little padding.
"""

from __future__ import annotations

from collections.abc import Sequence

MicroBatches = list[list[int]]
"""Numbers of rows, one list for each micro-batch."""


def divide(
    lengths: Sequence[int], tokens: int, processes: int = 1, *, packed: bool = False
) -> list[MicroBatches]:
    """The micro-batches of each process for rows of these lengths (in tokens).

    A micro-batch of several rows has at most `tokens` positions: with padding up to its longest row, or
    without when its rows are `packed` into one. Each process has as many micro-batches as the others, which
    sharded students need, and as many rows. Raises `ValueError` when the rows cannot be shared evenly.

    >>> divide([5, 90, 7, 40], 100)
    [[[1], [3, 2], [0]]]
    >>> divide([5, 90, 7, 40], 100, packed=True)
    [[[1, 2], [3, 0]]]
    >>> divide([5, 90, 7, 40], 100, processes=2)
    [[[1], [2]], [[3], [0]]]
    """
    if not lengths or len(lengths) % processes:
        raise ValueError(f"{len(lengths)} rows cannot be shared evenly by {processes} processes")
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    shares = [_fill(order[process::processes], lengths, tokens, packed) for process in range(processes)]
    most = max(map(len, shares))
    return [_in_parts(share, most) for share in shares]


def positions(batch: Sequence[int], lengths: Sequence[int], *, packed: bool = False) -> int:
    """How many positions a micro-batch has, padding included."""
    return sum(lengths[row] for row in batch) if packed else len(batch) * max(lengths[row] for row in batch)


def _fill(rows: Sequence[int], lengths: Sequence[int], tokens: int, packed: bool) -> MicroBatches:
    """Rows from the longest to the shortest into micro-batches, each into the first that has room."""
    batches: MicroBatches = []
    for row in rows:
        fitting = (b for b in batches if positions([*b, row], lengths, packed=packed) <= tokens)
        batch = next(fitting, None) if packed else _last_if(batches, row, lengths, tokens)
        if batch is None:
            batches.append([row])
        else:
            batch.append(row)
    return batches


def _last_if(batches: MicroBatches, row: int, lengths: Sequence[int], tokens: int) -> list[int] | None:
    """The last micro-batch when it has room: padded rows are best beside those of nearly their length."""
    if batches and positions([*batches[-1], row], lengths) <= tokens:
        return batches[-1]
    return None


def _in_parts(batches: MicroBatches, count: int) -> MicroBatches:
    """The micro-batches, with the fullest ones halved until there are `count`."""
    while len(batches) < count:
        place = max(range(len(batches)), key=lambda at: len(batches[at]))
        fullest = batches[place]
        half = (len(fullest) + 1) // 2
        batches[place : place + 1] = [fullest[:half], fullest[half:]]
    return batches
