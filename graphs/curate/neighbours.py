"""Nearest questions, for the baselines Embed-Sel and Embed-Syn: any function from texts to vectors, with two
that are ready."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from agent.chance import rank
from graphs.curate.settings import EmbedSettings
from streams.files import DataError

Vectors: TypeAlias = npt.NDArray[np.float32]
Embed: TypeAlias = Callable[[Sequence[str]], Vectors]
"""Texts to vectors, shape (len(texts), d). Called once with all texts, so that it may count words over
them."""

_WORD = re.compile(r"\\?[a-z]+|\d+|[^\w\s]", re.IGNORECASE)
_DIMENSIONS = 4096
_ROWS = 512  # questions compared at once


def tfidf(texts: Sequence[str]) -> Vectors:
    """TF-IDF over words and pairs of words, hashed into 4096 dimensions with signs (Weinberger et al. 2009):
    needs no package.

    >>> pool = {"a": "add two numbers", "b": "area of a circle"}
    >>> nearest(tfidf, pool, {"q": "the area of the circle"}, 1)["q"]
    ('b',)
    """
    counts = [Counter(_terms(text)) for text in texts]
    frequency = Counter(term for count in counts for term in count)
    places = {term: _place(term) for term in frequency}
    vectors = np.zeros((len(texts), _DIMENSIONS), dtype=np.float32)  # (N, D)
    for row, count in enumerate(counts):
        for term, times in count.items():
            place, sign = places[term]
            vectors[row, place] += (
                sign * (1 + np.log(times)) * np.log((1 + len(texts)) / (1 + frequency[term]))
            )
    return vectors


def _terms(text: str) -> list[str]:
    words = [word.casefold() for word in _WORD.findall(text)]
    return [*words, *(" ".join(pair) for pair in pairwise(words))]


def _place(term: str) -> tuple[int, int]:
    number = rank(0, "tfidf", term)
    return number // 2 % _DIMENSIONS, 1 if number % 2 else -1


def sentence_transformer(model: str) -> Embed:
    """The vectors of a sentence-transformers model (a folder or a hub name). Raises `DataError` when the
    package is missing."""
    try:
        package: Any = import_module("sentence_transformers")
    except ImportError as exc:
        raise DataError(
            "sentence-transformers is not installed: "
            "pip install sentence-transformers, or set embed.kind = 'tfidf'"
        ) from exc
    encoder = package.SentenceTransformer(model)

    def embed(texts: Sequence[str]) -> Vectors:
        return np.asarray(encoder.encode(list(texts), show_progress_bar=False), dtype=np.float32)

    return embed


def embedding(settings: EmbedSettings) -> Embed:
    """The configured embedding; a model is loaded when it is first asked."""
    if settings.kind == "tfidf":
        return tfidf
    return lambda texts: sentence_transformer(settings.model)(texts)


def nearest(
    embed: Embed, pool: Mapping[str, str], queries: Mapping[str, str], k: int
) -> dict[str, tuple[str, ...]]:
    """The `k` pool ids most like each query by cosine similarity, nearest first; ties go to the smaller id. A
    query is not its own."""
    pool_ids, query_ids = sorted(pool), sorted(queries)
    vectors = embed([*(pool[key] for key in pool_ids), *(queries[key] for key in query_ids)])  # (P + Q, D)
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    pool_vectors, query_vectors = vectors[: len(pool_ids)], vectors[len(pool_ids) :]
    neighbours: dict[str, tuple[str, ...]] = {}
    for start in range(0, len(query_ids), _ROWS):
        alike = query_vectors[start : start + _ROWS] @ pool_vectors.T  # (B, P)
        order = np.argsort(-alike.round(6), axis=1, kind="stable")[:, : k + 1]
        for query, row in zip(query_ids[start : start + _ROWS], order, strict=True):
            neighbours[query] = tuple(pool_ids[at] for at in row if pool_ids[at] != query)[:k]
    return neighbours
