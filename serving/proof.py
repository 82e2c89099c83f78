"""Proof that what a server serves is an adapter, not the base under the adapter's name.

A server answers 200 to an adapter that matches none of its modules, and then serves the base
(vllm-project/vllm#34186, #48019); a replica may hold another base. So log-probabilities of probe texts are
compared with those of PEFT in this process: of the next token, since asking vLLM for those of a prompt ends
the server when its batch holds an adapter and anything else (decision 34). An adapter is proven on a server
when, on average and in nats,

1. the server's adapter is within `tolerance` of PEFT's;
2. and less than half as far from it as PEFT's adapter is from the base. An adapter whose effect drowns in the
   server's rounding cannot be told from the base: it is not served. One without any effect is the base;
3. the server's base is as near to our base, though requests for the adapter are in its batch. This is left
   out where the base is served as an adapter, since nobody is sent to the base itself there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from heapq import nlargest
from pathlib import Path
from random import Random

from agent.items import Frozen
from serving.engine import EngineError, Scorer

PROBES = 12
PROBE_TOKENS = 16
CANDIDATES = 4
"""So many of the likeliest next tokens, by the base and by the adapter, are compared for each probe."""

Rows = Sequence[Sequence[float]]


class UnprovenAdapter(EngineError):
    """A server serves something else than the adapter; the message has the figures."""


class Reference(Frozen):
    """Probe texts as token ids, candidates for each text's next token, and the log-probabilities (nats) that
    base and adapter give them in PEFT."""

    texts: tuple[tuple[int, ...], ...]
    candidates: tuple[tuple[int, ...], ...]
    base: tuple[tuple[float, ...], ...]
    adapter: tuple[tuple[float, ...], ...]

    @property
    def effect(self) -> float:
        """How far the adapter moves the probes' log-probabilities, on average."""
        return distance(self.adapter, self.base)


class Proof(Frozen):
    """How far a server was from the reference, in nats: its base from the base (None: not asked), its adapter
    from PEFT's; `effect` is the adapter's own."""

    base: float | None
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
    return _measured(engine, engine.plain_tokens())


def _measured(engine: Scorer, vocabulary: Sequence[int]) -> Reference:
    """The reference, by an engine that has the base as version 1 and the adapter as version 2."""
    texts = _probes(vocabulary)
    everything = [vocabulary] * len(texts)
    rows = [engine.log_probabilities(texts, everything, version) for version in (1, 2)]
    places = [_likeliest(*pair) for pair in zip(*rows, strict=True)]
    base, adapted = (
        tuple(tuple(row[place] for place in kept) for row, kept in zip(scores, places, strict=True))
        for scores in rows
    )
    candidates = tuple(tuple(vocabulary[place] for place in kept) for kept in places)
    return Reference(texts=texts, candidates=candidates, base=base, adapter=adapted)


def _probes(vocabulary: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Texts of tokens drawn at random: every adapter moves them, whatever it was trained on."""
    random = Random(0)
    return tuple(tuple(random.choices(vocabulary, k=PROBE_TOKENS)) for _ in range(PROBES))


def _likeliest(*rows: Sequence[float]) -> list[int]:
    """The places of the highest numbers of each row."""
    return sorted({place for row in rows for place in nlargest(CANDIDATES, range(len(row)), row.__getitem__)})


def distance(one: Rows, other: Rows) -> float:
    """The mean absolute difference. Infinite when a number is not finite."""
    gaps = [
        abs(a - b) for left, right in zip(one, other, strict=True) for a, b in zip(left, right, strict=True)
    ]
    mean = math.fsum(gaps) / len(gaps)
    return mean if math.isfinite(mean) else math.inf


def prove(reference: Reference, base: Rows | None, adapter: Rows, tolerance: float) -> Proof:
    """Compare a server's log-probabilities of the probes, under its base's and the adapter's name, with the
    reference. Raises `UnprovenAdapter`."""
    proof = Proof(
        base=None if base is None else distance(base, reference.base),
        adapter=distance(adapter, reference.adapter),
        effect=reference.effect,
    )
    allowed = min(tolerance, proof.effect / 2 or tolerance)
    if proof.adapter > allowed:
        same = distance(adapter, reference.base) <= min(tolerance, proof.effect / 4)
        why = "it serves the base under the adapter's name" if same else "it does not compute what PEFT does"
        raise UnprovenAdapter(f"{why} ({_figures(proof, tolerance)})")
    if proof.base is not None and proof.base > allowed:
        raise UnprovenAdapter(
            f"its base is not the adapter's base ({_figures(proof, tolerance)}), or it answers for the base "
            "with an adapter's weights when both are in a batch, as vLLM on CPU does: set "
            "engine.vllm.base_as_adapter"
        )
    return proof


def _figures(proof: Proof, tolerance: float) -> str:
    base = "not asked" if proof.base is None else f"{proof.base:.4g}"
    return (
        f"mean differences in nats: base {base}, adapter {proof.adapter:.4g}, "
        f"the adapter's effect {proof.effect:.4g}, tolerance {tolerance:g}"
    )
