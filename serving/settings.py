"""How engines serve: settings alone, so that reading a configuration loads no model library."""

from __future__ import annotations

from pydantic import Field

from agent.settings import Settings


class EngineSettings(Settings):
    """The in-process engine. `batch_size` rows at a time; `stage_tokens` new tokens between two packings;
    `device` None: CUDA when there is one."""

    batch_size: int = Field(default=256, gt=0)
    stage_tokens: int = Field(default=24, gt=0)
    device: str | None = None
