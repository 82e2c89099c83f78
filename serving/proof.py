"""Proof that what a server serves is an adapter, not the base under the adapter's name.

A server answers 200 to an adapter that matches none of its modules, and then serves the base
(vllm-project/vllm#34186, #48019); a replica may hold another base. So log-probabilities of probe texts are
compared with those of PEFT in this process. An adapter is proven on a server when, on average over the
probes' tokens and in nats,

1. the server's base is within `tolerance` of our base;
2. the server's adapter is within `tolerance` of PEFT's;
3. the server's adapter is less than half as far from PEFT's as PEFT's is from the base. An adapter whose
   effect drowns in the server's rounding cannot be told from the base: it is not served.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from random import Random

from agent.items import Frozen
from serving.engine import EngineError

PROBES = 6
PROBE_TOKENS = 24

Rows = Sequence[Sequence[float]]


class UnprovenAdapter(EngineError):
    """A server serves something else than the adapter; the message has the figures."""


class Reference(Frozen):
    """Probe texts as token ids, and the log-probabilities (nats) that base and adapter give them in PEFT."""

    tokens: tuple[tuple[int, ...], ...]
    base: tuple[tuple[float, ...], ...]
    adapter: tuple[tuple[float, ...], ...]

    @property
    def effect(self) -> float:
        """How far the adapter moves the probes' log-probabilities, on average."""
        return distance(self.adapter, self.base)


class Proof(Frozen):
    """How far a server was from the reference, in nats: its base from the base, its adapter from PEFT's;
    `effect` is the adapter's own."""

    base: float
    adapter: float
    effect: float


def reference_of(base_dir: Path, adapter: Path, device: str | None = None) -> Reference:
    """What PEFT computes with `adapter` on the base, which is in this process's memory meanwhile.

    Raises `EngineError` for an adapter that does not fit this base, or does not change it.
    """
    # Seconds and a gigabyte that a process which publishes no adapter need not spend.
    from serving.settings import EngineSettings  # noqa: PLC0415
    from serving.transformers_engine import TransformersEngine  # noqa: PLC0415

    engine = TransformersEngine(base_dir, EngineSettings(device=device))
    engine.load(1, None)
    engine.load(2, adapter)
    tokens = _probes(engine.plain_tokens())
    base, adapted = (engine.log_probabilities(tokens, version) for version in (1, 2))
    return Reference(tokens=tokens, base=tuple(map(tuple, base)), adapter=tuple(map(tuple, adapted)))


def _probes(vocabulary: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Texts of tokens drawn at random: every adapter moves them, whatever it was trained on."""
    random = Random(0)
    return tuple(tuple(random.choices(vocabulary, k=PROBE_TOKENS)) for _ in range(PROBES))


def distance(one: Rows, other: Rows) -> float:
    """The mean absolute difference. Infinite when a number is not finite."""
    gaps = [
        abs(a - b) for left, right in zip(one, other, strict=True) for a, b in zip(left, right, strict=True)
    ]
    mean = math.fsum(gaps) / len(gaps)
    return mean if math.isfinite(mean) else math.inf


def prove(reference: Reference, base: Rows, adapter: Rows, tolerance: float) -> Proof:
    """Compare a server's log-probabilities of the probes, under its base's and the adapter's name, with the
    reference. Raises `UnprovenAdapter`."""
    proof = Proof(
        base=distance(base, reference.base),
        adapter=distance(adapter, reference.adapter),
        effect=reference.effect,
    )
    figures = (
        f"mean differences in nats: base {proof.base:.4g}, adapter {proof.adapter:.4g}, "
        f"the adapter's effect {proof.effect:.4g}, tolerance {tolerance:g}"
    )
    if proof.base > tolerance:
        raise UnprovenAdapter(f"its base is not the adapter's base ({figures})")
    if proof.adapter > tolerance or proof.adapter > proof.effect / 2:
        same = distance(adapter, base) <= min(tolerance, proof.effect / 4)
        why = "it serves the base under the adapter's name" if same else "it does not compute what PEFT does"
        raise UnprovenAdapter(f"{why} ({figures})")
    return proof
