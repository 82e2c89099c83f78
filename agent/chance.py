"""Deterministic chance: orders and shares that depend on a seed and on the ids only, not on input order or on
the process."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping


def rank(seed: int, *parts: str) -> int:
    """A 64-bit number that looks random and is the same everywhere.

    Drawing the n items of lowest rank is a uniform draw without replacement. New items leave the order of the
    old ones as it was, and the lowest n of a union are among the lowest n of its parts (bottom-k sampling;
    Cohen and Kaplan 2007).

    Examples
    --------
    >>> rank(0, "a") == rank(0, "a") != rank(1, "a")
    True
    """
    text = "\x1f".join((str(seed), *parts))
    return int.from_bytes(
        hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big"
    )


def ordered(items: Iterable[str], seed: int, *context: str) -> list[str]:
    """The distinct `items` in a random order fixed by `seed` and `context`.

    Examples
    --------
    >>> ordered(["b", "a"], 1, "x") == ordered(["a", "b", "a"], 1, "x")
    True
    """
    return sorted(set(items), key=lambda item: (rank(seed, *context, item), item))


def allot(total: int, weights: Mapping[str, float], caps: Mapping[str, int] | None = None) -> dict[str, int]:
    """Divide `total` in proportion to `weights` by largest remainders; what a cap refuses goes to the others.

    The parts add up to `total`, or to the sum of the caps where that is less. Equal claims are settled by
    name.

    Raises
    ------
    ValueError
        When `total` or a weight is negative or not finite.

    Examples
    --------
    >>> allot(10, {"a": 2.0, "b": 1.0}), allot(10, {"a": 2.0, "b": 1.0}, {"a": 3, "b": 50})
    ({'a': 7, 'b': 3}, {'a': 3, 'b': 7})
    """
    if total < 0 or any(not math.isfinite(w) or w < 0 for w in weights.values()):
        raise ValueError(f"cannot divide {total} by weights {dict(weights)}: negative or not finite")
    room = {
        name: total if caps is None else min(caps.get(name, 0), total)
        for name in sorted(weights)
        if weights[name] > 0
    }
    parts = dict.fromkeys(sorted(weights), 0)
    while total > 0 and room:
        shares = _largest_remainders(total, {name: weights[name] for name in room})
        full = [name for name, share in shares.items() if share >= room[name]]
        for name in full or list(shares):
            parts[name] = min(shares[name], room.pop(name))
            total -= parts[name]
        if not full:
            break
    return parts


def _largest_remainders(total: int, weights: Mapping[str, float]) -> dict[str, int]:
    whole = math.fsum(weights.values())
    exact = {name: total * (weight / whole) for name, weight in weights.items()}
    shares = {name: math.floor(value) for name, value in exact.items()}
    rest = total - sum(shares.values())
    for name in sorted(exact, key=lambda n: (shares[n] - exact[n], n))[:rest]:
        shares[name] += 1
    return shares
