"""Settings of the curate graph beside the strategy's, in a module that loads no library: configurations hold
them."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from agent.settings import Settings


class DuplicateSettings(Settings):
    """Jaccard thresholds of graphs/curate/duplicates.py: for repeats within a data set, and, stricter, for
    contamination by questions that must not be trained on."""

    duplicate: float = Field(default=0.7, gt=0, le=1)
    contamination: float = Field(default=0.6, gt=0, le=1)
    numbers_matter: bool = True


class EmbedSettings(Settings):
    """What the embed- strategies find neighbours with: `tfidf` needs nothing; `sentence-transformers` needs
    that package and a `model` folder or name."""

    kind: Literal["tfidf", "sentence-transformers"] = "tfidf"
    model: str = ""

    @model_validator(mode="after")
    def _model_named(self) -> Self:
        if self.kind == "sentence-transformers" and not self.model:
            raise ValueError("embed.model is needed by kind = 'sentence-transformers'")
        return self
