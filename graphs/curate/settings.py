"""Settings of the curate graph beside the strategy's, in a module that loads no library: configurations hold
them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from agent.items import Frozen


class DuplicateSettings(Frozen):
    """Jaccard thresholds of graphs/curate/duplicates.py: for repeats within a data set, and, stricter, for
    contamination by questions that must not be trained on."""

    duplicate: float = Field(default=0.7, gt=0, le=1)
    contamination: float = Field(default=0.6, gt=0, le=1)
    numbers_matter: bool = True


class EmbedSettings(Frozen):
    """What the embed- strategies find neighbours with: `tfidf` needs nothing; `sentence-transformers` needs
    that package and a `model` folder or name."""

    kind: Literal["tfidf", "sentence-transformers"] = "tfidf"
    model: str = ""
