"""Examples as token rows, and the exact order in which a round sees them.

The order is computed before training starts and the trainer reads it in sequence, so a resumed run needs no
random state to continue with the same data. Prompt and completion are tokenised apart and joined: the
prompt's tokens are then those the served student sees, whatever tokens would merge across the boundary.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from agent.items import Example
from training.errors import DatasetError, ExampleTooLong

logger = logging.getLogger(__name__)

IGNORED = -100
MEGABATCH = 8


@dataclass(frozen=True)
class Encoded:
    """One training row: its example, token ids, labels that ignore the prompt; both of shape (length,)."""

    example_id: str
    input_ids: list[int]
    labels: list[int]

    @property
    def taught(self) -> int:
        """How many of its tokens the loss counts; nothing precedes the first one, so nothing predicts it."""
        return sum(label != IGNORED for label in self.labels[1:])


def encode(examples: Sequence[Example], tokenizer: Any, max_length: int) -> list[Encoded]:
    """Tokenise prompt + completion + end of sequence; the loss counts the completion and its end only.

    Examples of more than `max_length` tokens are left out, since truncation would teach unfinished answers:
    there are as many rows fewer. Raises `ExampleTooLong` when that leaves nothing, or replay only, and
    `DatasetError` for an empty set or an empty completion.
    """
    if not examples:
        raise DatasetError("there are no examples to train on; a round without data must not be trained")
    empty = [example.example_id for example in examples if not example.completion.strip()]
    if empty:
        raise DatasetError(f"{len(empty)} examples have an empty completion, first {empty[0]!r}; remove them")
    if tokenizer.eos_token_id is None:
        raise DatasetError(
            "the base student's tokenizer has no end-of-sequence token; without one it never learns to stop"
        )
    prompts = tokenizer([example.prompt for example in examples])["input_ids"]
    completions = tokenizer([example.completion for example in examples], add_special_tokens=False)[
        "input_ids"
    ]
    rows = [
        _row(example.example_id, prompt, completion, tokenizer.eos_token_id)
        for example, prompt, completion in zip(examples, prompts, completions, strict=True)
    ]
    return _fitting(examples, rows, max_length)


def batch_plan(lengths: Sequence[int], steps: int, batch_size: int, seed: int) -> list[int]:
    """Row numbers in training order, `steps * batch_size` of them; every pass over the data is a fresh
    shuffle.

    Rows of similar length share a batch where a window of eight batches allows it, which saves padding.

    >>> plan = batch_plan([5, 5, 9, 9], steps=2, batch_size=2, seed=0)
    >>> sorted(plan)
    [0, 1, 2, 3]
    """
    rng = random.Random(seed)
    stream = _shuffled_passes(len(lengths), rng)
    plan: list[int] = []
    while len(plan) < steps * batch_size:
        batches = min(MEGABATCH, steps - len(plan) // batch_size)
        window = sorted((next(stream) for _ in range(batches * batch_size)), key=lambda row: lengths[row])
        chunks = [window[start : start + batch_size] for start in range(0, len(window), batch_size)]
        rng.shuffle(chunks)
        plan.extend(row for chunk in chunks for row in chunk)
    return plan


def _shuffled_passes(rows: int, rng: random.Random) -> Iterator[int]:
    while True:
        order = list(range(rows))
        rng.shuffle(order)
        yield from order


def _row(example_id: str, prompt: list[int], completion: list[int], eos: int) -> Encoded:
    answer = completion if completion[-1:] == [eos] else [*completion, eos]
    return Encoded(example_id, [*prompt, *answer], [IGNORED] * len(prompt) + answer)


def _fitting(examples: Sequence[Example], rows: Sequence[Encoded], max_length: int) -> list[Encoded]:
    fits = [len(row.input_ids) <= max_length for row in rows]
    if all(fits):
        return list(rows)
    longest, example_id = max(
        (len(row.input_ids), example.example_id) for example, row in zip(examples, rows, strict=True)
    )
    told = (
        f"{fits.count(False)} of {len(fits)} examples exceed max_length {max_length}, the longest is"
        f" {example_id!r} with {longest} tokens"
    )
    kept = {example.provenance.strategy for example, fit in zip(examples, fits, strict=True) if fit}
    if not kept - {"replay"}:
        raise ExampleTooLong(f"{told}; without them there is nothing new to learn: raise max_length")
    logger.warning("%s; they are left out", told)
    return [row for row, fit in zip(rows, fits, strict=True) if fit]
